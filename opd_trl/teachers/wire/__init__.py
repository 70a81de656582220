"""How hidden states come over HTTP: one file a format, with the same names in each."""
