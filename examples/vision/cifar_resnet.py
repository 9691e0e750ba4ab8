"""ResNet for images of 8 to 64 pixels: transformers' ResNet with a 3x3 stem in place of the 7x7 one with its pooling.

This file is saved beside a model of this type: `trust_remote_code=True` loads it from there. A process that imported it
needs no such flag.
"""

from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetConvLayer


class CifarResNetConfig(ResNetConfig):
    """ResNetConfig, and `stem_stride`: 1 keeps the image's size (He et al. 2015, section 4.2), 2 halves it."""

    model_type = "cifar_resnet"
    stem_stride: int = 1


class CifarResNetForImageClassification(ResNetForImageClassification):
    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        stem = self.resnet.embedder
        stem.embedder = ResNetConvLayer(
            config.num_channels, config.embedding_size, 3, config.stem_stride, activation=config.hidden_act
        )
        stem.pooler = nn.Identity()
        self.post_init()


AutoConfig.register(CifarResNetConfig.model_type, CifarResNetConfig)
AutoModelForImageClassification.register(CifarResNetConfig, CifarResNetForImageClassification)
CifarResNetConfig.register_for_auto_class()
CifarResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
