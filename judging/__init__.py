"""How results are judged: ranks, intervals, published figures, leaks, tables, pictures. Never reaches TensorFlow."""
