"""A model of PTB-XL and a recording that a user brings: probabilities, pictures, streams. Lightning is not imported."""
