"""The precision rule: losses are computed in float32, whatever the network ran in."""

import pytest
import torch

from metric.contracts import autocast_disabled, full_precision
from metric.distances import pdist


@pytest.mark.parametrize("given, computed", [(torch.float16, torch.float32), (torch.bfloat16, torch.float32),
                                             (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_full_precision_promotes_only_what_is_narrow(given, computed):
    seen = full_precision(lambda x, scale=None: (x.dtype, scale.dtype))
    assert seen(torch.ones(2).to(given), scale=torch.ones(2).to(given)) == (computed, computed)
    assert pdist(torch.ones(2, 2).to(given)).dtype == computed


def test_full_precision_disables_autocast_and_restores_it():
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert full_precision(lambda x: x @ x)(a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
        assert torch.equal(pdist(a), pdist(a.clone()))
        inside = pdist(a)
    assert torch.equal(inside, pdist(a))


def test_a_device_type_that_autocast_does_not_know_is_no_error():
    for device_type in ("meta", "no_such_device"):
        with autocast_disabled(device_type):
            pass
    assert full_precision(lambda x: x.shape)(torch.zeros(2, 3, device="meta")) == (2, 3)
