"""A data set of drawn birds, so that the whole job (teacher, distillation, Recall@K) runs without data or network.

80 species, 24 pictures each, in CUB's own layout: ROOT/synthetic_birds_v1_s0/images/001.Ivory-tailed_Warbler/*.jpg.
The first half of the sorted classes trains, the second half tests. Pose, place, light and what is in front of a bird
are drawn at random for each picture, without regard to its species. ``examples/contact_sheet.py`` shows them.

``species`` invents the species; ``anatomy`` says where the parts of a bird are, ``parts`` draws them, ``scenery`` makes
the picture around it; ``prepare`` draws all of them into a folder.
"""
from dataset.birds.prepare import prepare_birds
from dataset.birds.scenery import draw_bird
from dataset.birds.species import CLASSES, invent_species
from dataset.folder import FolderMetric

__all__ = ["SyntheticBirdsMetric", "prepare_birds", "draw_bird", "invent_species", "CLASSES"]


class SyntheticBirdsMetric(FolderMetric):
    """One split of the drawn birds, which are drawn below ``root`` on first use; the rest as in ``FolderMetric``."""

    summary = "birds drawn on first use, no download"
    can_download = False

    def __init__(self, root, train=False, transform=None, target_transform=None):
        super().__init__(prepare_birds(root), train, transform, target_transform)
