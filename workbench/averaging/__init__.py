"""Averages of weights (WiSE-FT, model soups): what each is worth, and which to take."""
