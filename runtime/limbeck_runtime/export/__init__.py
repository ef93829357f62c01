"""Files of a finished model: written whole, loaded again, compared with the torch model before they count."""
