"""The operations of a dream, one module each: the readable torch reference and the dispatch to faster versions."""
