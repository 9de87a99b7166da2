"""How the state of a CART grows from loop to loop before any training."""
