"""The demonstration: MAGIC and retraining on real data from one registry, with ledger, table, scores and report."""

from seedregistry.attribution.demo.plans import Plan, cifar10_plan, digits_plan
from seedregistry.attribution.demo.results import Demo
from seedregistry.attribution.demo.run import run_demo

__all__ = ["Demo", "Plan", "cifar10_plan", "digits_plan", "run_demo"]
