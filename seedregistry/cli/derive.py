"""``seedregistry derive``: a component seed, from its names."""

from __future__ import annotations

from typing import Optional

import click

from seedregistry.cli.options import YES, json_option, print_json

_MOST_DIGITS = 128


@click.command("derive")
@click.argument("master_seed")
@click.argument("purpose")
@click.argument("instance_id", required=False)
@click.option(
    "--int",
    "is_int",
    is_flag=True,
    help="The instance id is an int: 7 and '7' are two ids under sha256-256.",
)
@click.option(
    "--scheme", default="sha256-31", show_default=True, help="The rule from words to seeds."
)
@json_option
def derive_command(
    master_seed: str,
    purpose: str,
    instance_id: Optional[str],
    scheme: str,
    *,
    is_int: bool,
    as_json: bool,
) -> int:
    """Print the component seed of MASTER_SEED, PURPOSE and INSTANCE_ID."""
    from seedregistry import derivation
    from seedregistry.ledger import codec

    rule = derivation.find_scheme(scheme)
    number = derivation.validate_master_seed(_integer(master_seed, "MASTER_SEED"))
    name = derivation.validate_purpose(purpose)
    given = (
        _integer(instance_id, "INSTANCE_ID") if is_int and instance_id is not None else instance_id
    )
    identity = derivation.validate_instance_id(given)
    seed = rule.derive(number, name, identity)
    if as_json:
        facts = {
            "master_seed": str(number),
            "scheme": rule.name,
            "purpose": name,
            "instance_id": codec.tag_id(identity),
            "seed": seed,
            "key": derivation.stream_key(number, name, identity).hex(),
        }
        print_json(facts)
    else:
        click.echo(seed)
    return YES


def _integer(text: str, name: str) -> int:
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS):
        raise click.BadParameter(f"{text!r} is not an integer.", param_hint=name)
    return int(sign + digits)
