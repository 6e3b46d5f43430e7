"""Make the models that ship with the package: collect, train, halve the weights, judge, and write the model card.

    python scripts/make_pretrained.py reach --runs runs/pretrained       half an hour; others over one, pick_place three
    python scripts/make_pretrained.py push --runs runs/pretrained --pairs 100 --install

Each step is the verb a person would call, and is printed; what is finished is not done again (so a recipe that has
changed since wants another `--runs`). `--install` copies the result into embodied_wm/pretrained. Weights are halved to
16 bits before they are judged, so the figures in the card are those of the weights that ship; numbers that few share
(means, scales, norms) stay in 32 bits. The models that ship were trained with one thread (OMP_NUM_THREADS=1) by the
verb and the options below, and judged by this script with `--controllers model oracle behaviour_cloning
inverse_dynamics random` (the middle two act on latents alone, and were not judged again where those stayed). Where a
recipe has `refine`, a training anew kept the tokenizer of the training on play; this script trains it anew on
everything, so figures will differ a little.
Readouts were fitted last: those of `push` on play and random commands alone. `--seed` changes what a recipe does not
fix.

`push`: what is trained on play is off by 0.64 cm in the pusher's x sixteen steps ahead, what is trained anew, on 9,600
branches and 300 episodes of random commands too, by 0.52, and has 26.9 instead of 26.3 dB (RESULTS.md, "How imagination
answers an action").

`drawer` and `push_t`: errors weigh what is seen of a latent (RESULTS.md, "What is seen of a latent"). The branches of
`drawer` are of three rounds of 200 episodes. The `push_t` that ships was not trained anew by its recipe: it went on, at
a rate of 0.0015, from what shipped before (24,000 and 4,500 steps of predictor and self-forcing, errors unweighed, 300
episodes of random commands), for 7,000 and 2,500 steps on play, the same random commands and the branches of 110
episodes of its own planner, and for 8,000 and 3,000 with those of 113 more and 1,500 more episodes of random commands;
its card counts all of these steps.

`pick_place`: RESULTS.md, "Models that ship", says what was tried. Its goal policy learns from well-aimed play alone:
random commands and candidates of a planner lead nowhere. The one that ships was also trained on that, its clumsy play
carried cubes without turning them, it had two rounds of 200 episodes instead of one of 400, and no random commands
(they stood last in the merged store, of which the last tenth is held out).
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from embodied_wm import checkpoint
from embodied_wm.evaluation.lineup import CONTROLLERS
from embodied_wm.pretrained import FOLDER
from embodied_wm.world_model import WorldModel

FEW_THINGS = (
    "model=nano_keypoints",
    "trainer.tokenizer.num_steps=2000",
    "trainer.predictor.num_steps=16000",
    "trainer.self_forcing.num_steps=3000",
    "trainer.self_forcing.learning_rate=0.001",
    "trainer.readouts.num_steps=1500",
    "trainer.readouts.learning_rate=0.004",
)
"""For a few things before a still camera: key points, and contexts that the model imagined itself."""
LONGER = (*FEW_THINGS, "trainer.predictor.num_steps=24000", "trainer.self_forcing.num_steps=4500")
WIDER = tuple(f"model.predictor.transformer.{size}" for size in ("width=192", "num_heads=6", "hidden=512"))

FINE = ("model.predictor.shrinkage=0.1", "model.predictor.fourier_features=128")
"""So that what nobody touches stays, and what moves slowly moves."""
STILL = (*FINE, "model.predictor.stillness=0.06")
"""So that a scene at rest stays. (Of `push` it was set after it was trained.)"""
TWO_CAMERAS = ("trainer.camera=observation.images.front+side", "model.tokenizer.cameras=2")
SEEN_AND_FELT = (*TWO_CAMERAS, "model.proprioception=observation.state")
BRANCHED = (
    "rounds=1",
    "seed=11",
    "collect.num_branch_points=6",
    "collect.num_branches=8",
    "training.predictor_steps=20",
    "training.readout_steps=20",
    "imagination.num_branch_points=6",
    "planning.num_pairs=10",
)
"""A round of refinement for what it collects: from each of six states of an episode, what eight candidates lead to."""
RANDOM = ("policy=random", "episodes=300", "seed=78")
"""Options of another `collect`, whose episodes the training after refinement gets as well."""
MORE_RANDOM = (*RANDOM, "episodes=1800")
SEEN = ("model.predictor.visible_share=0.75",)
"""So that errors weigh what is seen of a latent."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Say what the verbs are given beyond their defaults.

    Attributes:
        collect: Options of `embodied-wm collect`.
        train: Options of `embodied-wm train`.
        random: Options of `embodied-wm collect` for random commands, which the training after refinement gets as well.
        refine: Options of `embodied-wm refine`; without any there is one training, on play. With some, a model is
            trained anew on play, random commands and what refinement collected, or that of play is trained further.
        first: What the training on play, from which refinement starts, is given beyond `train`.
        further: What is given beyond `train` where the model of play is trained further, on the latents that it has.
        policy: What a last stage, the goal policy's, is given beyond `train`; it is trained on what is `shown`, before
            refinement too.
        shown: Options of another `collect`, whose play the goal policy learns from, and what is compared with planning;
            without any it is the same play.
    """

    collect: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    random: tuple[str, ...] = RANDOM
    refine: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
    policy: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


RECIPES = {
    "reach": Recipe(train=("trainer.latent_actions.num_steps=12000", "trainer.adapter.num_steps=4000")),
    "push": Recipe(
        train=(*FEW_THINGS, *STILL, "seed=2"),
        refine=(*BRANCHED, "collect.num_episodes=200"),
    ),
    "push_t": Recipe(
        train=(*LONGER, *WIDER, *STILL, *SEEN, "model.tokenizer.eager=false", "seed=2"),
        random=MORE_RANDOM,
        refine=(*BRANCHED, "collect.num_episodes=200"),
    ),
    "drawer": Recipe(
        train=(*FEW_THINGS, *FINE, *SEEN, "seed=2"),
        random=MORE_RANDOM,
        refine=(*BRANCHED, "collect.num_episodes=600"),
        first=("trainer.predictor.num_steps=3000", "trainer.self_forcing.num_steps=600"),
    ),
    "pick_place": Recipe(
        collect=("policy=clumsy", "task.camera=front+side", "episodes=4000"),
        train=(
            *FEW_THINGS,
            *WIDER,
            *SEEN_AND_FELT,
            *FINE,
            "trainer.readouts.num_steps=6000",
            "trainer.plannable.state_weight=0.1",
        ),
        refine=(*BRANCHED, "collect.num_episodes=400"),
        further=("trainer.predictor.num_steps=12000", "stages=[adapter,predictor,self_forcing,readouts]"),
        policy=("model.goal_policy.width=256", "stages=[goal_policy]"),
        shown=("task.camera=front+side", "episodes=2000"),
    ),
}

LARGE = 1024
"""Numbers from which on a tensor is halved."""


def run(*arguments: str) -> None:
    """Call a verb, and say so."""
    print("$ embodied-wm", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "embodied_wm.cli", *arguments], check=True)


def halve(model_folder: Path, out: Path) -> None:
    """Write a model as it ships: without this machine's folders in its card, large tensors in half precision."""
    WorldModel.load(model_folder).save_pretrained(out)
    tensors = checkpoint.read_tensors(out / "model.safetensors")
    halved = {
        name: tensor.half() if tensor.is_floating_point() and tensor.numel() >= LARGE else tensor
        for name, tensor in tensors.items()
    }
    checkpoint.write_tensors(out / "model.safetensors", halved)


def make(task: str, runs: Path, *, seed: int, num_pairs: int, num_branches: int, controllers: list[str]) -> Path:
    """Do what is not done yet, and return the folder of the finished model."""
    recipe, seeded = RECIPES[task], f"seed={seed}"
    store, trained, out = runs / f"{task}.zarr", runs / f"train_{task}", runs / "models" / task
    run("collect", f"task={task}", *recipe.collect, f"out={store}", seeded, f"run_dir={_new(runs / f'collect_{task}')}")
    shown = store
    if recipe.shown:
        shown, folder = runs / f"{task}_shown.zarr", _new(runs / f"collect_shown_{task}")
        run("collect", f"task={task}", *recipe.shown, f"out={shown}", seeded, f"run_dir={folder}")
    _train(trained, store, seeded, *recipe.train, *recipe.first)
    if recipe.refine:
        refined, start = runs / f"refine_{task}", trained
        if recipe.policy:
            start = _train_on(runs / f"start_{task}", trained, shown, seeded, *recipe.train, *recipe.policy)
        given = (f"task={task}", f"checkpoint={start}", f"store={store}", f"run_dir={refined}")
        if not (refined / "model" / "config.json").is_file():
            run("refine", *given, seeded, *recipe.refine, *_resume(refined))
        everything = _everything(task, recipe, runs, store, refined / "episodes.zarr", seeded)
        if recipe.further:
            options = (*recipe.train, *recipe.further)
            trained = _train_on(runs / f"further_{task}", trained, everything, seeded, *options)
        else:
            trained = runs / f"anew_{task}"
            _train(trained, everything, seeded, *recipe.train)
    if recipe.policy:
        trained = _train_on(runs / f"guided_{task}", trained, shown, seeded, *recipe.train, *recipe.policy)
    if not (out / "config.json").is_file():
        halve(trained / "model", out)
    judged = [f"task={task}", f"checkpoint={out}"]
    run(
        "benchmark",
        "imagination",
        *judged,
        f"imagination.num_branch_points={num_branches}",
        f"run_dir={_new(runs / f'imagination_{task}')}",
    )
    run(
        "benchmark",
        "planning",
        *judged,
        f"planning.num_pairs={num_pairs}",
        f"planning.controllers=[{','.join(controllers)}]",
        f"planning.store={shown}",  # what behaviour cloning and inverse dynamics are trained on
        f"run_dir={_new(runs / f'planning_{task}')}",
    )
    return out


def _everything(task: str, recipe: Recipe, runs: Path, played: Path, refined: Path, seeded: str) -> Path:
    """Merge what was played, random commands, and what refinement collected; return the store."""
    everything, other = runs / f"{task}_all.zarr", runs / f"{task}_more.zarr"
    if not everything.exists():
        folder = f"run_dir={_new(runs / f'collect_more_{task}')}"
        run("collect", f"task={task}", *recipe.collect, seeded, *recipe.random, f"out={other}", folder)
        sources = ",".join(map(str, (played, other, refined)))
        folder = f"run_dir={_new(runs / f'merge_{task}')}"
        run("edit", "operation=merge", f"sources=[{sources}]", f"out={everything}", folder)
    return everything


def _train(folder: Path, store: Path, *options: str, finished: Path | None = None) -> None:
    """Train a model, or go on with it, where it is not finished: with a model in the folder, or in another given."""
    if not ((finished or folder) / "model" / "config.json").is_file():
        run("train", f"data.path={store}", f"run_dir={folder}", *options, *_resume(folder))


def _train_on(folder: Path, start: Path, store: Path, *options: str) -> Path:
    """Go on with a model in some stages, as a robot that it knows; return the folder of the result."""
    finished = folder / "robots" / store.stem
    _train(folder, store, f"start_from={start}", *options, finished=finished)
    return finished


def _resume(folder: Path) -> list[str]:
    """Return the option that goes on with the run in a folder, if there is one."""
    return ["resume=true"] if (folder / "config.yaml").is_file() else []


def _new(folder: Path) -> Path:
    """Return the folder, emptied: collecting and judging are done anew, training is not."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def main() -> None:
    """Make the models of the tasks that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(RECIPES), help=f"any of: {', '.join(RECIPES)}")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrained"), help="folder of stores, runs and models")
    parser.add_argument("--pairs", type=int, default=100, help="start and goal pairs of the planning benchmark")
    parser.add_argument("--branches", type=int, default=64, help="states of the imagination benchmark")
    parser.add_argument("--controllers", nargs="+", default=list(CONTROLLERS), help="who plans beside the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--install", action="store_true", help="copy the models into the package")
    arguments = parser.parse_args()
    for task in arguments.tasks:
        if task not in RECIPES:
            parser.error(f"there is no recipe for {task!r}; there are: {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    for task in arguments.tasks:
        out = make(
            task,
            arguments.runs,
            seed=arguments.seed,
            num_pairs=arguments.pairs,
            num_branches=arguments.branches,
            controllers=arguments.controllers,
        )
        if arguments.install:
            shutil.copytree(out, FOLDER / task, dirs_exist_ok=True)
        print(f"{task}: {out}", flush=True)


if __name__ == "__main__":
    main()
