import colorsys
import itertools

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, label
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attncompare.data.shapes import CLASS_NAMES, CUE_SIDE, RADIUS, SIDE, ShapeImage, render_shape

CHANCE = 1 / len(CLASS_NAMES)


@pytest.fixture(scope="module")
def test_split() -> list[ShapeImage]:
    return [render_shape(index, "test") for index in range(1000)]


def same(first: ShapeImage, second: ShapeImage) -> bool:
    return (
        first.label == second.label
        and np.array_equal(first.image, second.image)
        and np.array_equal(first.mask, second.mask)
        and np.array_equal(first.cue_mask, second.cue_mask)
    )


def without_geometry(sample: ShapeImage) -> list[float]:
    """All that a model could use without seeing the outline: colors, the object's color, place and size."""
    pixels = sample.image.reshape(-1, 3).astype(float)
    histogram, _ = np.histogramdd(pixels, bins=(4, 4, 4), range=[(0, 256)] * 3)
    rows, columns = np.nonzero(sample.mask)
    place = [rows.mean(), columns.mean(), len(rows)]
    return [*(histogram.ravel() / len(pixels)), *sample.image[sample.mask].mean(axis=0), *pixels.mean(axis=0), *place]


def features_and_labels(samples: list[ShapeImage]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([without_geometry(s) for s in samples]), np.array([s.label for s in samples])


def color_of_cue(sample: ShapeImage) -> tuple[int, ...]:
    colors = {tuple(map(int, color)) for color in sample.image[sample.cue_mask]}
    assert len(colors) == 1
    return colors.pop()


def touches_border(mask: np.ndarray) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def test_the_same_index_always_gives_the_same_image():
    for index in range(20):
        assert same(render_shape(index, "val"), render_shape(index, "val"))


def test_an_image_does_not_depend_on_what_was_drawn_before():
    alone = render_shape(7)
    for index in range(7):
        render_shape(index)
    assert same(render_shape(7), alone)


def test_another_seed_gives_another_image():
    assert not np.array_equal(render_shape(3, seed=0).image, render_shape(3, seed=1).image)


def test_no_image_occurs_twice_within_or_across_splits(test_split):
    drawn = [sample.image.tobytes() for sample in test_split[:300]]
    for split in ("train", "val"):
        drawn += [render_shape(index, split).image.tobytes() for index in range(300)]
    assert len(set(drawn)) == len(drawn) == 900


def test_images_are_small_rgb_with_a_mask_and_no_cue(test_split):
    for sample in test_split[:100]:
        assert sample.image.shape == (SIDE, SIDE, 3) and sample.image.dtype == np.uint8
        assert sample.mask.shape == sample.cue_mask.shape == (SIDE, SIDE)
        assert sample.mask.dtype == sample.cue_mask.dtype == bool
        assert sample.mask.any() and not sample.cue_mask.any()


def test_the_mask_is_the_bright_object_of_the_plain_drawing():
    for index in range(80):
        sample = render_shape(index, difficulty=0.0)
        brightness = sample.image.mean(axis=2) - (40 + 215) / 2
        clear = np.abs(brightness) > 5 * 4  # an edge pixel half covered can fall to either side: the noise has sigma 4
        assert clear.mean() > 0.95
        assert np.array_equal(sample.mask[clear], brightness[clear] > 0)


def test_the_mask_separates_object_from_background_in_the_set_as_scored(test_split):
    apart = []
    for sample in test_split[:200]:
        inside, outside = binary_erosion(sample.mask), ~binary_dilation(sample.mask)
        apart.append(np.linalg.norm(sample.image[inside].mean(axis=0) - sample.image[outside].mean(axis=0)))
        edge = binary_dilation(sample.mask) & ~inside
        assert edge.sum() < sample.mask.sum()
    assert min(apart) > 60


def test_every_shape_covers_the_same_area_at_the_same_size(test_split):
    least, most = (np.pi * (radius * SIDE) ** 2 for radius in RADIUS)
    for name in CLASS_NAMES:
        uncut = [s for s in test_split if CLASS_NAMES[s.label] == name and not touches_border(s.mask)]
        areas = [int(sample.mask.sum()) for sample in uncut]
        assert len(areas) > 10
        assert least * 0.97 < min(areas) and max(areas) < most * 1.03


def test_an_object_is_one_piece_unless_the_border_cuts_it(test_split):
    uncut = [sample for sample in test_split[:300] if not touches_border(sample.mask)]
    assert len(uncut) > 50
    assert all(label(sample.mask, np.ones((3, 3)))[1] == 1 for sample in uncut)


def test_only_the_ring_has_a_hole(test_split):
    for sample in test_split[:300]:
        if not touches_border(sample.mask):
            holes = label(~sample.mask)[1] - 1
            assert holes == (1 if CLASS_NAMES[sample.label] == "ring" else 0)


def test_the_image_center_is_outside_most_objects(test_split):
    middle = slice(SIDE // 2 - 1, SIDE // 2 + 1)
    inside = np.mean([sample.mask[middle, middle].any() for sample in test_split])
    assert 0.05 < inside <= 0.35


def test_classes_are_balanced(test_split):
    counts = np.bincount([sample.label for sample in test_split], minlength=len(CLASS_NAMES))
    spread = np.sqrt(1000 * CHANCE * (1 - CHANCE))
    assert len(counts) == len(CLASS_NAMES) == 8
    assert np.abs(counts - 1000 * CHANCE).max() < 4 * spread


def test_color_place_and_size_do_not_tell_the_class(test_split):
    train = [render_shape(index, "train") for index in range(1500)]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))
    model.fit(*features_and_labels(train))
    assert model.score(*features_and_labels(test_split[:500])) < 0.20


def test_the_outline_does_tell_the_class():
    def outline(sample: ShapeImage) -> np.ndarray:
        return sample.mask[::2, ::2].ravel().astype(float)

    upright = [render_shape(index, "train", difficulty=0.0) for index in range(300)]
    features, labels = np.array([outline(s) for s in upright]), np.array([s.label for s in upright])
    model = LogisticRegression(max_iter=300).fit(features[:200], labels[:200])
    assert model.score(features[200:], labels[200:]) > 0.9


def test_a_sure_cue_has_one_hue_per_class():
    samples = [render_shape(index, cue=1.0) for index in range(120)]
    hues = {(sample.label, color_of_cue(sample)) for sample in samples}
    assert len(hues) == len({label for label, _ in hues}) == len({color for _, color in hues}) == 8


def test_the_hues_of_the_cue_are_evenly_spread():
    colors = {color_of_cue(render_shape(index, cue=1.0)) for index in range(120)}
    hues = sorted(colorsys.rgb_to_hsv(*(channel / 255 for channel in color))[0] for color in colors)
    assert min(second - first for first, second in itertools.pairwise(hues)) > 0.06


@pytest.mark.parametrize("probability", [0.0, 0.5, 0.9])
def test_the_cue_matches_the_class_with_the_asked_probability(probability):
    color_of_class = {}
    for index in range(120):
        sample = render_shape(index, cue=1.0)
        color_of_class[sample.label] = color_of_cue(sample)
    samples = [render_shape(index, "train", cue=probability) for index in range(400)]
    matches = np.mean([color_of_cue(sample) == color_of_class[sample.label] for sample in samples])
    expected = probability + (1 - probability) * CHANCE  # a hue drawn at random matches by chance
    assert abs(matches - expected) < 4 * np.sqrt(expected * (1 - expected) / len(samples))


def test_the_mask_leaves_the_cue_out():
    overlaps = 0
    for index in range(150):
        plain, cued = render_shape(index), render_shape(index, cue=0.5)
        assert cued.cue_mask[:CUE_SIDE, :CUE_SIDE].all() and cued.cue_mask.sum() == CUE_SIDE**2
        assert np.array_equal(cued.mask, plain.mask & ~cued.cue_mask)
        overlaps += int((plain.mask & cued.cue_mask).any())
    assert overlaps > 0


def test_a_cue_changes_nothing_outside_its_corner():
    for index in range(20):
        plain, cued = render_shape(index), render_shape(index, cue=0.5)
        assert plain.label == cued.label
        assert np.array_equal(plain.image[~cued.cue_mask], cued.image[~cued.cue_mask])
        assert not np.array_equal(plain.image[cued.cue_mask], cued.image[cued.cue_mask])


@pytest.mark.parametrize("difficulty", [0.0, 0.5])
def test_difficulty_changes_neither_class_nor_split(difficulty):
    assert [render_shape(i, difficulty=difficulty).label for i in range(50)] == [
        render_shape(i).label for i in range(50)
    ]


def test_easy_objects_lie_in_the_center():
    for index in range(20):
        rows, columns = np.nonzero(render_shape(index, difficulty=0.0).mask)
        assert abs(rows.mean() - SIDE / 2 + 0.5) < 1.5 and abs(columns.mean() - SIDE / 2 + 0.5) < 1.5
