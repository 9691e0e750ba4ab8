"""The sizes that `BitmaskMatrix` and its kernel agree on."""

ROWS, COLUMNS = 16, 256  # of a tile
MOST_TOKENS = 16  # beyond, a product waits for its multiplications, and the dense product is as fast
