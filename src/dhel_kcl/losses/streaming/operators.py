"""Operators with hand-written gradients, the basis of every loss, eager or compiled."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Operator:
    """A function of tensors with a hand-written first-order gradient.

    In eager mode it is a `torch.autograd.Function`. Under `torch.compile` it is a custom operator of torch, opaque to
    the compiler, so its loops and checks neither break the graph nor get unrolled into it; each call then costs more.
    Differentiating twice raises RuntimeError.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        *,
        shapes: Callable[..., Any],
        save: Callable[[Any, Any, Any], None],
        backward: Callable[..., Any],
    ) -> None:
        """Make the operator.

        Args:
            forward: computes the outputs; its parameters are annotated, and its name becomes that of the operator.
            shapes: returns empty outputs of the right shapes and dtypes for the same arguments.
            save: keeps what the backward pass needs, like `torch.autograd.Function.setup_context`.
            backward: returns the gradient with respect to each argument.
        """

        def first_order(ctx: Any, *gradients: Tensor) -> Any:
            if torch.is_grad_enabled():
                raise RuntimeError("the losses of dhel_kcl have first derivatives only: they refuse create_graph=True")
            return backward(ctx, *gradients)

        # `setup_context` would make torch inspect the signature at every call, which is noticeable for small batches.
        def forward_and_save(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            save(ctx, inputs, output)
            return output

        methods = {"forward": forward_and_save, "backward": first_order}
        name = forward.__name__.strip("_")
        self._function: Any = type(
            name, (torch.autograd.Function,), {key: staticmethod(method) for key, method in methods.items()}
        )
        self._custom = torch.library.custom_op(f"dhel_kcl::{name}", forward, mutates_args=())
        self._custom.register_fake(shapes)
        self._custom.register_autograd(first_order, setup_context=save)

    def __call__(self, *arguments: Any) -> Any:
        """Return the outputs."""
        return self._custom(*arguments) if torch.compiler.is_compiling() else self._function.apply(*arguments)


class Energy(Operator):
    """An operator that computes a scalar together with its gradient with respect to the first argument.

    `forward` takes the tensor, the settings and, last, whether to compute the gradient; it returns both results.
    """

    def __init__(self, forward: Callable[..., tuple[Tensor, Tensor]]) -> None:
        """Make the operator from a function that returns a scalar and its gradient."""
        super().__init__(forward, shapes=self._shapes, save=self._save, backward=self._scale)

    @staticmethod
    def _shapes(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        return x.new_empty(()), torch.empty_like(x if settings[-1] else x[:0])

    @staticmethod
    def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.num_settings = len(inputs) - 1

    @staticmethod
    def _scale(ctx: Any, grad_value: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (grad_value * gradient, *(None,) * ctx.num_settings)

    def __call__(self, x: Tensor, *settings: Any) -> Tensor:
        """Return the value."""
        wanted = torch.is_grad_enabled() and x.requires_grad
        value: Tensor = super().__call__(x, *settings, wanted)[0]
        return value
