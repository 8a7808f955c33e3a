"How fast the tabletop makes clips on one core, and where the time goes: python benchmarks/world.py"
import argparse, time

from machine import Clock, save  # before NumPy and MuJoCo: it sets their threads
import numpy as np


def measure(body: str,  # one of the tabletop's bodies
            px: int,    # side of the picture
            n: int,     # clips
           ) -> dict:
    "One body at one size, as its clips are made: hands at 30 frames a second, robots at 10; the true mask at every action; video and truth written."
    import tempfile
    from pathlib import Path
    from motionvla import franka, looks, scenes, tabletop, tasks, world
    clock, human = Clock(), body in scenes.HUMANS
    clock.wrap(tabletop.Eye, 'draw', 'picture'); clock.wrap(tabletop.Tabletop, 'body_mask', 'mask')
    clock.wrap(franka.Reach, '__call__', 'inverse kinematics')
    for name in ('blur', 'develop'): clock.wrap(tabletop, name, 'lens and sensor')
    clock.wrap(tabletop.Simulation, 'step', 'physics'); clock.wrap(tabletop.Simulation, 'reset', 'reset')
    clock.wrap(world, 'write_video', 'video'); clock.wrap(world.np, 'savez_compressed', 'truth')
    clock.wrap(tabletop.Eye, 'mask', 'mask')
    verbs = tasks.ONE_ARM if not body.startswith('two_') else tasks.VERBS
    job = lambda i: dict(part=body, index=i, verb=verbs[i % len(verbs)], split='train', body=body, seed=0, image_px=px, fps=30 if human else 10, variation=1. if human else .3,
                         noise=0. if human else .003, sway=1., same_color=False, wild=1., distractors=[2, 5], wordings='train', groups=list(tasks.GROUPS), wrist=False)
    with tempfile.TemporaryDirectory() as d:
        for part in ('clips', 'truth', '.parts'): (Path(d)/part).mkdir()
        _, _, env = world.make_episode(job(0)); clock.seconds.clear()   # compiling the scene is not what is measured
        start, frames, steps = time.process_time(), 0, 0
        for i in range(1, n + 1):
            episode, attempts, env = world.make_episode(job(i), env)
            world.save_episode(Path(d), job(i), episode, attempts); frames += len(episode.frames); steps += len(episode)
        seconds = time.process_time() - start
        env.close()
    parts = {k: clock.seconds.get(k, 0.)/seconds for k in ('physics', 'inverse kinematics', 'picture', 'lens and sensor', 'mask', 'video', 'truth', 'reset')}
    physics = clock.seconds['physics'] + clock.seconds.get('inverse kinematics', 0.)
    return dict(body=body, px=px, fps=30 if human else 10, clips=n, frames_per_s=frames/seconds, steps_per_s=steps/physics, **parts, rest=1 - sum(parts.values()),
                seconds_a_clip=seconds/n, core_hours_10k=seconds/n*1e4/3600)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(); parser.add_argument('--clips', type=int, default=28); parser.add_argument('--one', nargs=2)
    asked = parser.parse_args()
    if asked.one:  # a process for each body and size: one renderer a process
        import json
        print(json.dumps(measure(asked.one[0], int(asked.one[1]), asked.clips)))
    else:
        import json, subprocess, sys
        save('world', [json.loads(subprocess.run([sys.executable, __file__, '--clips', str(asked.clips), '--one', body, str(px)], check=True, capture_output=True, text=True)
                                  .stdout.strip().splitlines()[-1]) for body in ('hand', 'franka', 'fetch', 'two_hands', 'two_franka') for px in (128, 224)])
