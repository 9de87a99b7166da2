"""Ways to read a prompt, and their errors."""

from experiments.prefill import reading
from tests.contract.models import model_of, params_of, tokens_of


def test_prefill_errors_are_those_of_the_passes():
  """With K = T + 1 passes nothing is left of the error; with one, most is."""
  model = model_of('crt')
  params, tokens = params_of(model), tokens_of(model)[:, :3]
  exact, *others = reading.ways(3, (2, 100), (4,))
  assert exact == ('sequential', 3, None)
  assert others == [('parallel', 3, 4), ('chunked', 2, 4)]
  record, expected = reading.read(model, params, tokens, exact, 1)
  assert record['tokens'] == 3 and record['seconds'] > 0
  for way in (*others, reading.Way('parallel', 3, 1)):
    error = reading.error(reading.read(model, params, tokens, way, 1)[1], expected)
    assert (error['max_logit_error'] < 1e-3) == (way.passes == 4)
    assert (error['kl'] < 1e-6) == (way.passes == 4)
