"""Every benchmark in turn, as one table: `python -m benchmarks`. Wants a machine with nothing else to do."""

from benchmarks import adaptive, attacks, defenses, modern_attacks, purifiers, system, training


def main() -> None:
    """Print each part as it is measured."""
    parts = {
        "Attack engine": attacks.rows,
        "Transfer attacks of 2020 to 2024": modern_attacks.rows,
        "Adaptive attacks": adaptive.rows,
        "Defenses": defenses.rows,
        "Score-based purifiers": purifiers.rows,
        "Store and commands": system.rows,
        "Training": training.rows,
    }
    for name, part in parts.items():
        print(f"\n{name}")
        for row in part():
            print(f"  {row.name:<66} {row.value:9.2f} {row.note}", flush=True)


if __name__ == "__main__":
    main()
