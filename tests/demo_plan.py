"""A small plan for the demonstration, and recipes for the command line: importable."""

from __future__ import annotations

import attrs
from recipes import held_out, mlp, recipe

from seedregistry.attribution import losses_of
from seedregistry.attribution.demo import Plan, digits_plan


def small_plan(registry) -> Plan:
    plan = digits_plan(registry)
    train = tuple(tensor[:300] for tensor in plan.train)
    return attrs.evolve(
        plan,
        recipe=attrs.evolve(plan.recipe, dataset=train, batch_size=60, epochs=8),
        train=train,
        targets=8,
        fractions=(0.05, 0.2),
        subsets=12,
        ablation_fractions=(0.05,),
        ablation_subsets=6,
    )


def for_the_command_line(registry) -> tuple:
    del registry
    return recipe(model=mlp, epochs=4), losses_of(*held_out())


def takes_nothing() -> tuple:
    return recipe(), losses_of(*held_out())


def not_a_recipe(registry) -> str:
    del registry
    return "nothing"
