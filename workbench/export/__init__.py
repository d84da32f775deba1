"""Models in the formats of other libraries, each loaded again by the other library and compared."""
