"Nothing that a policy is tested on was in its training: combinations, start states, wordings, textures, cameras."
from itertools import cycle, islice

import numpy as np
import pytest

from motionvla.looks import BASE
from motionvla.splits import BODY_SEED, CODES, SHOWN, SPLITS, shown_by, split_table, start_rng, start_state, training_rng, training_state, verbs_of
from motionvla.tasks import GROUPS, ONE_ARM, TEMPLATES, VERBS, Task, combination, group
from motionvla.textures import SHIFTED_TEXTURES, TRAIN_TEXTURES

EACH = 200  # start states of each split, and training clips of each body
BODIES = ('hand', 'franka')


@pytest.fixture(scope='module')
def starts():
    "split → [(task, scene)], its one-armed verbs in turn."
    verbs = {split: [v for v in verbs_of(split) if v in ONE_ARM] for split in SPLITS}
    return {split: [start_state(split, verbs[split][i % len(verbs[split])], i // len(verbs[split])) for i in range(EACH)] for split in SPLITS}


@pytest.fixture(scope='module')
def clips():
    "body → [(task, scene)] of the first clips of runs with seeds 0 to 4."
    return {body: [training_state(training_rng(seed, body, i), verb, body) for seed in range(5) for i, verb in enumerate(islice(cycle(ONE_ARM), EACH // 5))]
            for body in BODIES}


def arrangement(task, scene):
    "What stands where, to the millimetre, and what is asked: looks and camera do not count."
    place = lambda xy: tuple(np.round(xy, 3).tolist())
    return (combination(task), tuple((o['color'], o['shape'], place(o['xy'])) for o in scene.objects),
            tuple(sorted((name, place(f['xy'])) for name, f in scene.fixtures.items())), tuple(place(s) for s in scene.start))


def test_no_combination_is_in_two_groups():
    rows = split_table()
    assert len({tuple(r[k] for k in ('verb', 'color', 'shape', 'place', 'other')) for r in rows}) == len(rows)
    assert {r['group'] for r in rows} == set(GROUPS)
    for r in rows:  # however it is said and whatever the second object's shape
        said = {group(Task(r['verb'], r['color'], r['shape'], r['place'], r['other'] and f'{r["other"]} {shape}', wording))
                for shape in ('block', 'cylinder') for wording in (0, 9)}
        assert said == {r['group']}


def test_robot_shows_every_part_of_every_verb():
    rows = split_table()
    for part in ('color', 'shape', 'place', 'other'):
        assert {(r['verb'], r[part]) for r in rows} == {(r['verb'], r[part]) for r in rows if r['group'] == 'seen'}


def test_drawn_tasks_belong_to_their_split(starts, clips):
    for split, (name, _) in SPLITS.items(): assert {group(t) for t, _ in starts[split]} == {name}
    for body in BODIES: assert {group(t) for t, _ in clips[body]} == set(shown_by(body))
    assert 'novel' not in SHOWN['human'] + SHOWN['robot'] and 'unseen' not in SHOWN['robot']


def test_no_start_state_is_in_two_places(starts, clips):
    every = [(arrangement(*state), source) for source, states in {**starts, **clips}.items() for state in states]
    by = {}
    for what, source in every: by.setdefault(what, []).append(source)
    assert [sources for sources in by.values() if len(sources) > 1] == []
    assert len(by) == EACH * (len(SPLITS) + len(BODIES))


def test_streams_are_apart():
    first = {}
    for split in CODES:
        for verb in range(len(VERBS)):
            for i in range(20):
                for part in (1, 2): first[split, verb, i, part] = start_rng(split, verb, i, part=part).random()
    seeds = [0, 1, 2, 3, 4, 20261200, 2**32 - 1]  # the start states' own number too
    for seed in seeds:
        for body in BODY_SEED:
            for i in range(60): first[seed, body, i] = training_rng(seed, body, i, i % 3).random()
    assert len(set(first.values())) == len(first)
    assert len(set(CODES.values())) == len(CODES) and len(set(BODY_SEED.values())) == len(BODY_SEED) and set(SPLITS) <= set(CODES)


def test_start_state_is_always_the_same(starts):
    for split in SPLITS:
        verb = verbs_of(split)[0]
        task, scene = start_state(split, verb, 0)
        assert (task, scene) == start_state(split, verb, 0) == starts[split][0]
        held, same = start_state(split, verb, 0, wordings='held')
        assert same == scene and combination(held) == combination(task)


def test_held_out_wordings_are_never_in_training(starts, clips):
    for task, _ in [*clips['hand'], *clips['franka'], *(s for split in SPLITS for s in starts[split])]: assert task.wording < len(task.template.words)
    for v, t in TEMPLATES.items():
        assert not set(t.words) & set(t.held), v
        for i in range(8): assert start_state('seen', v, i, wordings='held', body='two_hands')[0].wording >= len(t.words)


def kinds(scene): return {scene.looks[part]['kind'] for part in ('table', 'wall', 'floor')}


def test_shifted_looks_are_in_no_training_clip(starts, clips):
    trained = [s for body in BODIES for _, s in clips[body]]
    for _, scene in starts['shifted']: assert kinds(scene) <= set(SHIFTED_TEXTURES)
    for scene in trained: assert kinds(scene) <= set(TRAIN_TEXTURES)
    assert not set(SHIFTED_TEXTURES) & set(TRAIN_TEXTURES)
    lean = lambda s: max(np.hypot(*light['source'][:2]) for light in s.looks['lights'])
    assert min(lean(s) for _, s in starts['shifted']) > max(lean(s) for s in trained)


def test_shifted_cameras_are_farther_away_than_any_in_training(starts, clips):
    off = lambda s: np.array(s.camera['eye']) - BASE['eye']
    shifted, trained = (np.stack([off(s) for s in group]) for group in ([s for _, s in starts['shifted']], [s for body in BODIES for _, s in clips[body]]))
    assert np.linalg.norm(shifted, axis=1).min() > np.linalg.norm(trained, axis=1).max()
    assert (np.abs(shifted[:, [0, 2]]).min(0) > np.abs(trained[:, [0, 2]]).max(0)).all()


def test_wrong_questions_get_one_sentence():
    for wrong in (lambda: start_state('test', 'push', 0), lambda: start_state('unseen', 'open the drawer', 0), lambda: start_state('seen', 'throw', 0),
                  lambda: training_rng(-1, 'hand', 0), lambda: training_rng(2**32, 'hand', 0), lambda: training_rng(0, 'foot', 0),
                  lambda: start_rng('seen', 1), lambda: start_rng('training', 1, 1)):
        with pytest.raises(ValueError) as told: wrong()
        assert '\n' not in str(told.value) and len(str(told.value)) > 20
