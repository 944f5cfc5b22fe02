"""Linear operators that become one: their algebra and what it costs, without a framework."""
