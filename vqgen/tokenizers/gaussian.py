"""The Gaussian bottleneck of a KL tokenizer: each position of the hidden map becomes a posterior,
kept near N(0, I)."""

from typing import Literal

import torch
from torch import Tensor

from vqgen.contracts import Bottleneck, FeatureSpec, Size, Standardize

LOG_VARIANCE = (-30.0, 20.0)  # deviations from 3e-7 to 2e4: exp and its gradient stay finite


class GaussianBottleneck(Bottleneck):
    """q(z | image) = N(mean, deviation^2) per number, z drawn from it in training (Kingma and
    Welling 2014; as a first stage: Rombach et al. 2022).

    channels    of the latents; the encoder gives twice as many, means then log-variances
    kl_weight   of KL(q || N(0, 1)) in nats, averaged over batch and latent numbers: it carries
                over between image sizes. The training that follows needs it small
    latents     what `encode` gives: "mean", the same at every call, or "sample", a draw from the
                posterior out of torch's global random numbers (a prior trained on them sees new
                ones at every pass)
    """

    def __init__(
        self,
        *,
        channels: int = 4,
        kl_weight: float = 1e-3,
        latents: Literal["mean", "sample"] = "mean",
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(
                f"wanted tokenizer.bottleneck.channels of at least 1, got {channels}; "
                "type tokenizer.bottleneck.channels=4"
            )
        if kl_weight < 0:
            raise ValueError(
                f"wanted tokenizer.bottleneck.kl_weight of at least 0, got {kl_weight}; "
                "type tokenizer.bottleneck.kl_weight=1e-3"
            )
        if latents not in ("mean", "sample"):
            raise ValueError(
                f"wanted tokenizer.bottleneck.latents to be mean or sample, got {latents}; "
                "type tokenizer.bottleneck.latents=mean"
            )
        self.in_channels, self.out_channels = 2 * channels, channels
        self.kl_weight, self.draws = kl_weight, latents == "sample"
        self.scaling = Standardize(channels)
        self._gauges: dict[str, float] = {}

    def spec(self, size: Size) -> FeatureSpec:
        return FeatureSpec(self.out_channels, *size)

    @property
    def standardizer(self) -> Standardize:
        return self.scaling

    def forward(self, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As the contract says; a draw from the posterior, before any standardization."""
        with torch.autocast(hidden.device.type, enabled=False):
            mean, log_variance = posterior(hidden)
            deviation = (log_variance / 2).exp()
            nats = kl_nats(mean, log_variance).mean()
            drawn = mean + deviation * torch.randn_like(mean)
        if torch.is_grad_enabled():
            self._gauges = {
                "latents/kl_nats_per_number": float(nats.detach()),
                "latents/posterior_deviation": float(deviation.detach().mean()),
            }
        return drawn, {"kl": self.kl_weight * nats}

    def after_step(self) -> dict[str, float]:
        return self._gauges

    def encode(self, hidden: Tensor) -> Tensor:
        mean, deviation = self.moments(hidden)
        return mean if deviation is None else mean + deviation * torch.randn_like(mean)

    def moments(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, deviation = self.posterior(hidden)
        return mean, deviation if self.draws else None

    def posterior(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            mean, log_variance = posterior(hidden)
            deviation = (log_variance / 2).exp() / self.scaling.deviation[:, None, None]
            return self.scaling(mean), deviation

    def embed(self, latents: Tensor, size: Size) -> Tensor:
        wanted = (self.out_channels, *size)
        if latents.shape[1:] != wanted:
            raise ValueError(
                f"wanted latents of shape [batch, {', '.join(map(str, wanted))}], got "
                f"{list(latents.shape)}; use latents of this very tokenizer and image size"
            )
        return self.scaling.undo(latents)


def posterior(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """hidden [batch, 2 C, h, w] -> mean and clamped log-variance, float32 [batch, C, h, w]."""
    mean, log_variance = hidden.float().chunk(2, dim=1)
    return mean.contiguous(), log_variance.clamp(*LOG_VARIANCE)


def kl_nats(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of every number, in nats (Kingma and Welling 2014,
    appendix B)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2
