"""What models are used for, one use a file."""
