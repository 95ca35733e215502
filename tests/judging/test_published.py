import numpy as np
import pytest

from judging import published


def test_the_papers_model_in_other_galleries():
    """Recall from the 100 published ranks, in galleries of two sizes. Source: the project's reference figures."""
    assert len(published.PAPER_RANKS) == 100 and np.median(published.PAPER_RANKS) == 550
    for k, share in ((1, 0), (10, 0.02), (50, 0.10), (100, 0.13), (500, 0.46)):
        assert np.mean(np.array(published.PAPER_RANKS) <= k) == share
        assert published.paper_recall(5000, k)[0] == pytest.approx(share)
    for k, share in ((1, 0.024), (5, 0.085), (10, 0.118), (100, 0.62)):
        assert published.paper_recall(604, k)[0] == pytest.approx(share, abs=0.005)
    assert published.paper_recall(604, 1)[1:] == pytest.approx((0.006, 0.048), abs=0.002)
    assert published.paper_median_rank(5000) == 550 and published.paper_median_rank(600) == pytest.approx(66.8, abs=0.1)
