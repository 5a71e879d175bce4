"""Write ``sirf_numbers.json``: what the real SIRF answers to the probes of ``tests/sirf_probes.py``, and its names.

Usage, where SIRF can be imported: ``PYTHONPATH=.:tests python tests/reference/make_sirf_numbers.py``
"""

import json
from pathlib import Path

import sirf.STIR as pet
from sirf_probes import probes, result

NOT_FOR_SCRIPTS = {"HANDLE", "ABC", "parms", "sys", "numpy", "np"}


def main() -> None:
    redirector = pet.MessageRedirector(None, None, None)
    pet.set_verbosity(0)
    numbers = {name: result(pet, call) for name, (_, call) in probes().items()}
    names = sorted(
        name
        for name, value in vars(pet).items()
        if getattr(value, "__module__", "") == "sirf.STIR" and not name.startswith("_") and name not in NOT_FOR_SCRIPTS
    )
    del redirector
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in numbers.items()]
    text = '{"names": ' + json.dumps(names) + ',\n"numbers": {\n' + ",\n".join(lines) + "\n}}\n"
    (Path(__file__).parent / "sirf_numbers.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
