"""The model: weights, network and encoder. Knows neither videos nor recipes."""
