"""Pictures of a run and of a model (extra `plots`)."""

from .figures import plot_inference_flops, plot_layers, plot_training

__all__ = ["plot_inference_flops", "plot_layers", "plot_training"]
