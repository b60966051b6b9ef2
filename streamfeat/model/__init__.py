"""The model: weights, network and encoder. Knows neither videos nor recipes."""

from streamfeat.model.encoder import DEFAULT, Encoder, ModelError, WeightsError, load_encoder

__all__ = ["DEFAULT", "Encoder", "ModelError", "WeightsError", "load_encoder"]
