"""Settings under which small tensors go through every path of the losses."""

import pytest
import torch

from opd_trl.losses import fused


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For tensors of a few dozen numbers: waking a second thread costs milliseconds a call on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def blocks_of_two_tokens():
    """Without it a block would hold thousands of the tests' small rows, and no test would cross its border."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "block_size_for", lambda vocab_size, device: 2)
        yield
