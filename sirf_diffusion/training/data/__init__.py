"""Files of training volumes: made from a user's images or simulated, and read as random slices."""
