import numpy as np
import pytest
from conftest import ROOT

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


def test_the_figures_of_other_papers_are_those_of_the_docs():
    """docs/evaluation.md lists all of them, in the same order, and no others."""
    text = (ROOT / "docs" / "evaluation.md").read_text()
    lines = text.partition("| paper | test | direction |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = [[float(cell) if cell else None for cell in row[3:]] for row in rows]
    expected = [[of.auc, of.eer, of.matching.get(2), of.mean_precision] for of in published.ASSOCIATION]
    assert found == expected


def test_figures_are_beside_ours_by_split_and_people():
    def beside(*more):
        return published.association_beside(*more)

    papers = [of.paper for of in beside("voxceleb1-names", "test", 185, "face to voice", "equal sex", 185)]
    assert papers == ["Wen et al. 2021", "MM 2023"]
    assert beside("voxceleb1-names", "test", 185, "face to voice", "equal age", 185) == []
    for of in published.ASSOCIATION:
        shares = [of.auc, of.eer, *of.matching.values(), of.mean_precision]
        assert all(share is None or 5 <= share <= 95 for share in shares) and any(shares)
        assert of.split is None or of.people
