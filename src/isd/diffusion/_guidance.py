"""Guidance: towards a classifier's class, or away from the unconditional prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from isd.diffusion._denoiser import DenoiserFn


class ClassifierFree:
    """Classifier-free guidance: ``uncond + scale * (cond - uncond)``, itself a callable denoiser.

    Scale 1 is plain conditional sampling and calls only `cond`; scale 0 calls only `uncond`. Above 1, labels are sharper
    and samples less diverse. The formula holds for every parametrisation, since all are affine in the prediction.

    Parameters
    ----------
    cond
        Denoiser ``fn(x, t)`` that knows the condition.
    uncond
        Denoiser ``fn(x, t)`` of the same parametrisation that does not.
    scale
        Guidance scale, not negative: one number, or a tensor of shape (n,) with one a row.

    Attributes
    ----------
    calls_per_evaluation
        Passes of the network that one evaluation costs: 1, or 2 where both predictions are needed.

    References
    ----------
    Ho, Salimans (2022), Classifier-free diffusion guidance, equation 6 (there ``scale = 1 + w``).

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import ClassifierFree
    >>> guided = ClassifierFree(lambda x, t: x + 1, lambda x, t: x, scale=1.5)
    >>> guided(torch.zeros(1, 2), torch.ones(1))
    tensor([[1.5000, 1.5000]])
    """

    def __init__(self, cond: DenoiserFn, uncond: DenoiserFn, scale: float | Tensor) -> None:
        self.cond, self.uncond = cond, uncond
        self.scale = _check_scales(scale) if isinstance(scale, Tensor) else _check_scale(scale)
        self._both: DenoiserFn | None = None

    @classmethod
    def batched(
        cls, fn: Callable[[Tensor, Tensor, Any], Tensor], cond: Any, uncond: Any, scale: float | Tensor
    ) -> ClassifierFree:
        """Guide a network ``fn(x, t, condition)`` in one pass over twice the batch.

        Parameters
        ----------
        fn
            Takes x (n, d), times (n,) and a condition: a tensor with n rows, or a tuple, list or mapping of such.
        cond, uncond
            Condition of each row, and what stands for "no condition", of the same structure and shapes.
        scale
            Guidance scale, not negative; one number, or one a row.

        Returns
        -------
        ClassifierFree
            Counts as two calls, since each row passes the network twice.

        Examples
        --------
        >>> import torch
        >>> from isd.diffusion import ClassifierFree
        >>> network = lambda x, t, label: x + label[:, None]
        >>> guided = ClassifierFree.batched(network, torch.tensor([1.0, 2.0]), torch.zeros(2), scale=2.0)
        >>> guided(torch.zeros(2, 1), torch.ones(2))
        tensor([[2.],
                [4.]])
        """
        guided = cls(lambda x, t: fn(x, t, cond), lambda x, t: fn(x, t, uncond), scale)
        if guided.calls_per_evaluation == 2:
            joint = _concatenate(cond, uncond)

            def both(x: Tensor, t: Tensor) -> Tensor:
                return fn(torch.cat([x, x]), torch.cat([t, t]), joint)

            guided._both = both
        return guided

    @property
    def calls_per_evaluation(self) -> int:
        return 1 if isinstance(self.scale, float) and self.scale in (0.0, 1.0) else 2

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Guided prediction.

        Parameters
        ----------
        x
            Noised data, shape (n, d).
        t
            Times, shape (n,).

        Returns
        -------
        Tensor
            Shape (n, d).
        """
        if isinstance(self.scale, float) and self.scale in (0.0, 1.0):
            return (self.cond if self.scale == 1.0 else self.uncond)(x, t)
        if self._both is not None:
            cond, uncond = self._both(x, t).chunk(2)
        else:
            cond, uncond = self.cond(x, t), self.uncond(x, t)
        if isinstance(self.scale, float):
            return torch.lerp(uncond, cond, self.scale)
        return torch.lerp(uncond, cond, self.scale.to(cond)[:, None])


class ConditionMix:
    """Several conditions at once: ``uncond + scale * sum_k weight_k (cond_k - uncond)``, itself a callable denoiser.

    With two conditions of the weights ``1 - w`` and ``w`` it leads from one to the other as ``w`` goes from 0 to 1;
    with one condition it is :class:`ClassifierFree`. Conditions without weight cost nothing.

    Parameters
    ----------
    fn
        Network ``fn(x, t, condition)``; takes x (n, d), times (n,) and a condition: a tensor with n rows, or a
        tuple, list or mapping of such.
    conditions
        The conditions, of the same structure and shapes.
    weights
        One number a condition, not negative.
    uncond
        What stands for "no condition".
    scale
        Guidance scale, not negative.

    Attributes
    ----------
    calls_per_evaluation
        Passes of the network that one evaluation costs.

    Raises
    ------
    ValueError
        If there are no conditions, weights are of another number, or a number is negative.

    References
    ----------
    Luo et al. (2024), scDiffusion, section "gradient interpolation", where the gradients of a classifier are mixed.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import ConditionMix
    >>> network = lambda x, t, label: x + label[:, None]
    >>> a, b, nothing = (torch.full((1,), v) for v in (1.0, 3.0, 0.0))
    >>> ConditionMix(network, [a, b], [0.75, 0.25], nothing)(torch.zeros(1, 2), torch.ones(1))
    tensor([[1.5000, 1.5000]])
    """

    def __init__(
        self,
        fn: Callable[[Tensor, Tensor, Any], Tensor],
        conditions: Sequence[Any],
        weights: Sequence[float],
        uncond: Any,
        scale: float = 1.0,
    ) -> None:
        if not conditions or len(conditions) != len(weights):
            raise ValueError(f"{len(conditions)} conditions and {len(weights)} weights; one weight a condition.")
        scale = _check_scale(scale)
        factors = [scale * _check_scale(weight) for weight in weights]
        # the null condition takes what the weights leave of 1, rounded so that weights that add up to 1 leave nothing
        pairs = [*zip(conditions, factors, strict=True), (uncond, round(1.0 - sum(factors), 12))]
        pairs = [(condition, factor) for condition, factor in pairs if factor != 0]
        self.fn = fn
        self.factors = [factor for _, factor in pairs]
        self.calls_per_evaluation = len(pairs)
        self._joint = pairs[0][0]
        for condition, _ in pairs[1:]:
            self._joint = _concatenate(self._joint, condition)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Mixed prediction.

        Parameters
        ----------
        x
            Noised data, shape (n, d).
        t
            Times, shape (n,).

        Returns
        -------
        Tensor
            Shape (n, d).
        """
        k = len(self.factors)
        parts = self.fn(x.repeat(k, 1), t.repeat(k), self._joint).chunk(k)
        total = self.factors[0] * parts[0]
        for factor, part in zip(self.factors[1:], parts[1:], strict=True):
            total = total + factor * part
        return total


@runtime_checkable
class Guide(Protocol):
    """What a sampler asks of a guide; :class:`ClassifierGuide` is one, and your own class may be another.

    Examples
    --------
    A guide of one's own, towards the point (1, 1) in the less noisy half:

    >>> import torch
    >>> class TowardsOne:
    ...     def active(self, t):
    ...         return t < 0.5
    ...
    ...     def gradient(self, x, t):
    ...         return 1.0 - x
    >>> guide = TowardsOne()
    >>> isinstance(guide, Guide), guide.active(0.9), guide.gradient(torch.zeros(1, 2), 0.4)
    (True, False, tensor([[1., 1.]]))
    """

    def active(self, t: float) -> bool:
        """Whether the guide pulls at time `t`."""
        ...

    def gradient(self, x: Tensor, t: float) -> Tensor:
        """Scaled gradient of ``log p(y | x_t)`` by `x` at time `t`, shape (n, d)."""
        ...


class ClassifierGuide:
    """Classifier guidance: samples are pulled along the gradient of ``log p(y | x_t)``.

    :class:`DDPM` shifts the mean of each step by ``variance * scale * gradient`` (as published for scDiffusion); the other
    samplers predict the noise ``eps - sigma * scale * gradient``. Several guides are summed: give a list of them
    to the sampler, for two attributes at once or for an interpolation between two labels.

    Parameters
    ----------
    log_prob
        ``log_prob(x, t)`` takes noised data (n, d) and times (n,) and gives the log-probability of each row's
        wanted class, shape (n,), by operations that autograd follows.
    scale
        Weight of the gradient, not negative; 0 turns the guide off, 2 is scDiffusion's setting.
    start
        The guide pulls at times below this: classifiers are trained on the less noisy times only. At the default, 1,
        it pulls at all times but pure noise.
    start_guide_step
        Instead of `start`, a number of training steps: the guide pulls at steps with an index (0-based) below it.
    n_timesteps
        Number of training steps that `start_guide_step` counts in.

    Attributes
    ----------
    n_calls
        Passes of the classifier so far.

    Raises
    ------
    ValueError
        If `scale` is negative, both kinds of start are given, or a start is out of range.

    References
    ----------
    Dhariwal, Nichol (2021), Diffusion models beat GANs on image synthesis, algorithms 1 and 2.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import ClassifierGuide
    >>> guide = ClassifierGuide(lambda x, t: -(x**2).sum(1) / 2, scale=2.0, start_guide_step=500)
    >>> guide.gradient(torch.ones(1, 2), 0.1)
    tensor([[-2., -2.]])
    >>> guide.active(0.5), guide.active(0.501)  # steps 499 and 500 of 1000
    (True, False)
    """

    def __init__(
        self,
        log_prob: Callable[[Tensor, Tensor], Tensor],
        scale: float = 1.0,
        *,
        start: float | None = None,
        start_guide_step: int | None = None,
        n_timesteps: int = 1000,
    ) -> None:
        if start is not None and start_guide_step is not None:
            raise ValueError(f"start={start} and start_guide_step={start_guide_step} say the same; give one of them.")
        if start is not None and not 0 <= start <= 1:
            raise ValueError(f"start is {start}; a time in [0, 1] is expected (for steps, there is start_guide_step).")
        if start_guide_step is not None and not 0 <= start_guide_step <= n_timesteps:
            raise ValueError(f"start_guide_step is {start_guide_step}; a number in 0 ... {n_timesteps} is expected.")
        self.log_prob = log_prob
        self.scale = _check_scale(scale)
        if start_guide_step is not None:
            # index k lies at (k + 1) / T; half a step between k and k + 1 keeps rounding out of the comparison
            start = (start_guide_step + 0.5) / n_timesteps
        self.start = 1.0 if start is None else float(start)
        self.n_calls = 0

    def active(self, t: float) -> bool:
        """Whether the guide pulls at time `t`.

        Parameters
        ----------
        t
            Time in [0, 1].

        Returns
        -------
        bool
        """
        return self.scale != 0 and t < self.start

    def gradient(self, x: Tensor, t: float) -> Tensor:
        """``scale`` times the gradient of the log-probability.

        Works under ``torch.no_grad`` and ``torch.inference_mode`` too, and leaves the parameters' gradients alone.

        Parameters
        ----------
        x
            Noised data, shape (n, d).
        t
            Time in [0, 1].

        Returns
        -------
        Tensor
            Shape (n, d).

        Raises
        ------
        ValueError
            If ``log_prob`` gives another shape than (n,), or autograd finds no way from it to `x`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().detach().requires_grad_()
            log_prob = self.log_prob(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device))
            self.n_calls += 1
            if log_prob.shape != (len(x),):
                raise ValueError(
                    f"log_prob gave shape {tuple(log_prob.shape)}; one value a row, shape ({len(x)},), is expected."
                )
            if not log_prob.requires_grad:
                raise ValueError(
                    "log_prob does not depend on x through autograd; is there a detach() or no_grad in it?"
                )
            (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        return self.scale * gradient


def _check_scale(scale: float) -> float:
    scale = float(scale)
    if not 0 <= scale < float("inf"):
        raise ValueError(f"scale is {scale}; a finite number that is not negative is expected.")
    return scale


def _check_scales(scale: Tensor) -> float | Tensor:
    """One scale a row; where all are the same, that number."""
    if scale.ndim != 1 or not len(scale):
        raise ValueError(f"scale has shape {tuple(scale.shape)}; one number, or one a row, shape (n,), is expected.")
    low, high = _check_scale(float(scale.min())), _check_scale(float(scale.max()))
    return low if low == high else scale


def _concatenate(first: Any, second: Any) -> Any:
    """Rows of two conditions of the same structure, one below the other."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, Mapping):
        return {key: _concatenate(value, second[key]) for key, value in first.items()}
    if isinstance(first, (tuple, list)):
        return type(first)(_concatenate(a, b) for a, b in zip(first, second, strict=True))
    if first is None and second is None:
        return None
    raise ValueError(
        f"A condition of type {type(first).__name__} cannot be batched; give tensors, or tuples or mappings of tensors."
    )
