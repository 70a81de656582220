"""Private functions of torch in use."""

import torch


def test_a_backward_can_ask_whether_its_graph_is_kept():
    """losses/fused.py hands its gradients over without a copy where it is not."""
    seen = []

    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch._C._autograd._get_current_graph_task_keep_graph())
            return grad

    y = Ask.apply(torch.ones(2, requires_grad=True)).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert seen == [True, False]


def test_a_cpu_says_whether_it_has_instructions_for_bfloat16():
    """models/loading.py warns of one that has none."""
    assert torch.cpu._is_avx512_bf16_supported() in (True, False)
    assert isinstance(torch.backends.cpu.get_cpu_capability(), str)
