"""OPDConfig and OPSDConfig: their fields by theme, what they refuse, and the published methods by name."""
