"""Calls of ``sirf.STIR`` whose results are stored, to be compared with those of the embedded engine."""

import operator
from pathlib import Path
from typing import Any

import numpy as np

from sirf_diffusion import data

FOLDER = Path(data.__file__).parent / "brain2d"
SHAPE, SIZES = (3, 9, 8), (4.0, 2.0, 2.5)
# Relative, of sums, norms and weighted sums: rounding, and the difference of the two projectors.
EXACT, PROJECTED, RATIO = 2e-6, 2e-3, 2e-2


class Case:
    """What the probes work on, of one engine."""

    def __init__(self, pet: Any) -> None:
        self.pet = pet
        self.array = np.random.default_rng(1).random(SHAPE).astype(np.float32) + 0.2
        self.image, self.other = self.an_image(2 * self.array[::-1]), self.an_image(self.array)
        self.prompts, self.additive, self.factors = (
            pet.AcquisitionData(str(FOLDER / f"{name}.hs")) for name in ("prompts", "additive", "multiplicative")
        )
        self.truth = pet.ImageData(str(FOLDER / "truth.hv"))

    def an_image(self, values: Any, shape: tuple[int, int, int] = SHAPE, sizes: tuple = SIZES) -> Any:
        image = self.pet.ImageData()
        image.initialise(shape, sizes)
        return image.fill(np.ascontiguousarray(np.broadcast_to(values, shape), dtype=np.float32))

    def random(self, shape: tuple[int, int, int], seed: int = 2) -> Any:
        return self.an_image(np.random.default_rng(seed).random(shape) + 0.1, shape)

    def model(self, additive: Any = None, background: Any = None, width: Any = None, factors: Any = True) -> Any:
        model = self.pet.AcquisitionModelUsingRayTracingMatrix()
        model.set_num_tangential_LORs(10)
        if factors is not None:
            factors = self.factors if factors is True else factors
            model.set_acquisition_sensitivity(self.pet.AcquisitionSensitivityModel(factors))
        if additive is not None:
            model.set_additive_term(additive)
        if background is not None:
            model.set_background_term(background)
        if width is not None:
            model.set_image_data_processor(self.gaussian(width))
        model.set_up(self.prompts, self.truth)
        return model

    def gaussian(self, widths: tuple, sizes: Any = None, normalise: bool = True) -> Any:
        found = self.pet.SeparableGaussianImageFilter()
        found.set_fwhms(widths)
        if sizes is not None:
            found.set_max_kernel_sizes(sizes)
        found.set_normalise(normalise)
        return found

    def prior(self, name: str, image: Any, kappa: bool = False) -> Any:
        prior = getattr(self.pet, name)()
        prior.set_penalisation_factor(0.7)
        if name == "PLSPrior":
            prior.set_alpha(0.3)
            prior.set_eta(0.4)
            prior.set_only_2D(image.shape[0] == 1)
            prior.set_anatomical_image(self.random(image.shape, 5))
        if kappa:
            prior.set_kappa(self.random(image.shape, 6))
        prior.set_up(image)
        return prior

    def objective(self, prior: Any = None, additive: Any = None) -> Any:
        model = self.model(self.additive if additive is None else additive)
        objective = self.pet.make_Poisson_loglikelihood(self.prompts, acq_model=model)
        objective.set_num_subsets(6)
        if prior is not None:
            objective.set_prior(prior)
        objective.set_up(self.truth)
        return objective

    def osem(self, prior: Any = None) -> Any:
        recon = self.pet.OSMAPOSLReconstructor()
        recon.set_objective_function(self.objective(prior))
        recon.set_num_subsets(6)
        recon.set_num_subiterations(8)
        start = self.truth.get_uniform_copy(1.0)
        recon.set_up(start)
        recon.set_current_estimate(start)
        recon.process()
        return recon.get_output()


def summary(value: Any) -> Any:
    """A result in a few numbers, which tell order and place too."""
    if hasattr(value, "as_array"):
        value = value.as_array()
    if isinstance(value, np.ndarray):
        values = value.astype(np.float64).ravel()
        weights = 1.5 + np.cos(np.arange(values.size))
        return [list(value.shape), float(values.sum()), float(np.linalg.norm(values)), float(weights @ values)]
    if isinstance(value, (tuple, list)):
        return [summary(v) for v in value]
    return value if isinstance(value, (str, bool)) or value is None else float(value)


def probes() -> dict[str, tuple[float, Any]]:
    """Name, tolerance and call of each probe."""
    found: dict[str, tuple[float, Any]] = {}

    def add(name: str, call: Any, tolerance: float = EXACT) -> None:
        assert name not in found, name
        found[name] = (tolerance, call)

    operands = {
        "2": lambda c: 2, "2.5": lambda c: 2.5, "f32": lambda c: np.float32(2), "f64": lambda c: np.float64(2),
        "int": lambda c: np.int64(3), "array": lambda c: c.array, "array64": lambda c: c.array.astype(float),
        "image": lambda c: c.other,
    }  # fmt: skip
    symbols = {"+": "add", "-": "sub", "*": "mul", "/": "truediv"}
    methods = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
    for key, operand in operands.items():
        for symbol, name in symbols.items():
            function = getattr(operator, name)
            add(f"image {symbol} {key}", lambda c, f=function, o=operand: f(c.image, o(c)))
            if symbol != "-" and key != "image":
                add(f"{key} {symbol} image", lambda c, f=function, o=operand: f(o(c), c.image))
        for name in ("power", "maximum", "minimum"):
            add(f"{name} {key}", lambda c, n=name, o=operand: getattr(c.image, n)(o(c)))
    for symbol, name in methods.items():
        add(f"{name} out", lambda c, n=name: (getattr(c.image, n)(c.other, out=c.image), c.image)[1])
        inplace = getattr(operator, "i" + symbols[symbol])
        for key in ("2.5", "array", "image"):
            add(f"image {symbol}= {key}", lambda c, f=inplace, o=operands[key]: f(c.image, o(c)))
    for a in ("2.5", "image"):
        for b in ("f64", "image"):
            add(f"sapyb {a} {b}", lambda c, a=a, b=b: c.image.sapyb(operands[a](c), c.other, operands[b](c)))
    for name in ("abs", "sign", "exp", "log", "sqrt", "norm", "sum", "max", "min", "clone", "voxel_sizes"):
        add(name, lambda c, n=name: getattr(c.image, n)())
    for name in ("shape", "size", "spacing"):
        add(name, lambda c, n=name: getattr(c.image, n))
    add("dtype", lambda c: str(c.image.dtype))
    add("negative", lambda c: -c.image)
    add("dot image", lambda c: c.image.dot(c.other))
    add("dot array", lambda c: c.image.dot(c.array))
    add("image / 0", lambda c: c.image / 0)
    add("image == clone", lambda c: bool(c.image == c.image.clone()))
    add("image == other", lambda c: bool(c.image == c.other))
    add("image != other", lambda c: bool(c.image != c.other))
    add("image == on another grid", lambda c: bool(c.image == c.an_image(c.image.as_array(), SHAPE, (1.0, 1.0, 1.0))))
    add("type of f32 * image", lambda c: type(np.float32(2) * c.image).__name__)
    add("uniform", lambda c: [c.image.get_uniform_copy(), c.image.get_uniform_copy(3), c.image.allocate(2)])
    add("asarray is a view", lambda c: (c.image.asarray().fill(4), c.image)[1])
    add("asarray copy", lambda c: (c.image.asarray(copy=True).fill(4), c.image)[1])
    add("as_array is a copy", lambda c: (c.image.as_array().fill(4), c.image)[1])
    for value in (3, np.float32(3), np.ones(SHAPE), np.ones(SHAPE, int)):
        add(f"fill {type(value)} {getattr(value, 'dtype', '')}", lambda c, v=value: c.image.fill(v))
    add("fill wrong shape", lambda c: c.image.fill(np.ones((2, 2, 2))))
    add("fill word", lambda c: c.image.fill("one"))
    add("missing file", lambda c: c.pet.ImageData("nofile.hv"))
    add("wrong argument", lambda c: c.pet.ImageData(3))

    for shape in ((1, 9, 9), (3, 9, 9), (6, 5, 9), (2, 1, 9)):
        for widths in ((6, 6, 6), (20, 4, 4), (0, 5, 5), (3, 0, 0)):
            add(f"gaussian {shape} {widths}", lambda c, s=shape, w=widths: c.gaussian(w).process(c.random(s)))
    add("gaussian short", lambda c: c.gaussian((6, 6, 6), (3, 3, 5)).process(c.random((3, 9, 9))))
    add("gaussian not normalised", lambda c: c.gaussian((6, 6, 6), (3, 3, 5), False).process(c.random((3, 9, 9))))
    for shape in ((2, 9, 9), (2, 10, 10), (1, 8, 9)):
        for strict in (True, False):

            def truncated(c: Case, s: Any = shape, strict: bool = strict) -> Any:
                processor = c.pet.TruncateToCylinderProcessor()
                processor.set_strictly_less_than_radius(strict)
                return processor.process(c.random(s))

            add(f"truncated {shape} {strict}", truncated)
    for scaling in ("preserve_sum", "preserve_values", "preserve_projections"):
        for zooms, offsets, size in (
            ((1.0, 2.0, 1.5), (0.0, 0.0, 0.0), (-1, -1, -1)),
            ((0.5, 0.7, 1.3), (1.0, -2.0, 3.0), (4, 7, 10)),
        ):

            def zoomed(c: Case, z: Any = zooms, o: Any = offsets, n: Any = size, s: str = scaling) -> Any:
                image = c.image.zoom_image(z, o, n, s)
                return [image, image.voxel_sizes()]

            add(f"zoom {scaling} {zooms}", zoomed)
        template = lambda c, s=scaling: c.image.zoom_image_as_template(c.random((2, 12, 11)), s)  # noqa: E731
        add(f"zoom as template {scaling}", template)

    for name in ("QuadraticPrior", "RelativeDifferencePrior", "PLSPrior"):
        add(f"{name} factor", lambda c, n=name: getattr(c.pet, n)().get_penalisation_factor())
        for shape in ((3, 7, 6), (1, 7, 6)):
            for kappa in (False, True):
                key = f"{name} {shape} {'kappa ' if kappa else ''}"

                def given(c: Case, n: str = name, s: Any = shape, k: bool = kappa) -> Any:
                    return c.prior(n, c.random(s), k), c.random(s), c.random(s, 4)

                add(key + "value", lambda c, g=given: (lambda p, x, v: p.value(x))(*g(c)))
                add(key + "gradient", lambda c, g=given: (lambda p, x, v: p.gradient(x))(*g(c)))
                if name != "PLSPrior":
                    add(key + "Hessian", lambda c, g=given: (lambda p, x, v: p.multiply_with_Hessian(x, v))(*g(c)))
    rdp = "RelativeDifferencePrior"
    add("RDP gamma, epsilon", lambda c: (lambda p: [p.get_gamma(), p.get_epsilon()])(c.pet.RelativeDifferencePrior()))
    add("RDP Hessian at zeros", lambda c: c.prior(rdp, c.image).multiply_with_Hessian(c.image * 0, c.other))
    add("RDP Hessian diagonal", lambda c: c.prior(rdp, c.image).compute_Hessian_diagonal(c.image))
    add("PLS defaults", lambda c: (lambda p: [p.get_alpha(), p.get_eta(), p.get_only_2D()])(c.pet.PLSPrior()))
    add("prior without set_up", lambda c: c.pet.QuadraticPrior().set_penalisation_factor(1).gradient(c.image))

    add("storage scheme", lambda c: c.pet.AcquisitionData.get_storage_scheme())
    add("data asarray is a copy", lambda c: (c.prompts.clone().asarray().fill(5), c.prompts)[1])
    add("data asarray copy=False", lambda c: c.prompts.clone().asarray(copy=False))
    add("data view", lambda c: c.prompts.supports_array_view)
    add("fill read-only", lambda c: c.prompts.fill(1))
    add("fill a clone", lambda c: c.prompts.clone().fill(1))
    add("data copies", lambda c: [c.prompts.get_uniform_copy(), c.prompts.get_uniform_copy(2), c.prompts.shape])
    add("data algebra", lambda c: [c.prompts + c.additive, 2 * c.prompts, c.prompts / 2, c.prompts.dot(c.additive)])
    add("image of data", lambda c: [c.prompts.create_uniform_image(1, 5), c.pet.ImageData(c.prompts).voxel_sizes()])

    add("rays", lambda c: c.pet.AcquisitionModelUsingRayTracingMatrix().get_num_tangential_LORs())
    add("model subsets", lambda c: [c.model().num_subsets, c.model().subset_num])
    for key, options in {
        "plain": {}, "additive": {"additive": True}, "background": {"background": True},
        "no factors": {"factors": None}, "both": {"additive": True, "background": True},
        "PSF": {"width": (10, 10, 10)}, "PSF in plane": {"width": (0, 7, 5)},
    }.items():  # fmt: skip

        def modelled(c: Case, o: Any = options) -> Any:
            return c.model(**{name: c.additive if value is True else value for name, value in o.items()})

        add(f"forward {key}", lambda c, m=modelled: m(c).forward(c.truth), PROJECTED)
        add(f"forward {key} subset", lambda c, m=modelled: m(c).forward(c.truth, 1, 6), PROJECTED)
        add(f"backward {key}", lambda c, m=modelled: m(c).backward(c.prompts), PROJECTED)
        add(f"backward {key} subset", lambda c, m=modelled: m(c).backward(c.prompts, 4, 6), PROJECTED)
        add(f"constant {key}", lambda c, m=modelled: m(c).get_constant_term())
        add(f"linear {key}", lambda c, m=modelled: bool(m(c).is_linear()))
    add("direct with background", lambda c: c.model(c.additive).direct(c.truth))

    # What changes after set_up: f, g two widths, k sizes, n norm, s set_up, t on another grid, p, q process on these.
    for order in ("fspgp", "fsgp", "fsq", "fpq", "fspkp", "fspnp", "fptp", "fpgsp"):
        add(f"gaussian changed {order}", lambda c, o=order: _of_a_changed_filter(c, o))
    prior_changes = {
        "factor": lambda p, c: p.set_penalisation_factor(2), "kappa": lambda p, c: p.set_kappa(c.other),
        "alpha": lambda p, c: p.set_alpha(3), "eta": lambda p, c: p.set_eta(3),
        "anatomical": lambda p, c: p.set_anatomical_image(c.random(SHAPE, 9)),
    }  # fmt: skip
    for key, change in prior_changes.items():
        add(
            f"PLS then {key}",
            lambda c, f=change: (lambda p: (f(p, c), p.value(c.image))[1])(c.prior("PLSPrior", c.image)),
        )

    def kappa_refilled(c: Case) -> Any:
        prior, kappa = c.prior("QuadraticPrior", c.image), c.random(SHAPE)
        prior.set_kappa(kappa)
        kappa.fill(3)
        return prior.value(c.image)

    add("kappa refilled", kappa_refilled)
    for term in ("additive", "background"):

        def later(c: Case, t: str = term) -> Any:
            model = c.model()
            getattr(model, f"set_{t}_term")(c.additive)
            return model.forward(c.truth)

        add(f"{term} after set_up", later, PROJECTED)
        add(f"objective, {term} set after it was made", lambda c, t=term: _of_a_late_term(c, t), 1e-4)
        add(f"objective, {term} refilled", lambda c, t=term: _of_a_refilled_background(c, t), 1e-4)

    def raised(c: Case) -> Any:
        recon, image = c.pet.OSMAPOSLReconstructor(), c.truth - 1
        recon.set_objective_function(c.objective())
        recon.set_up(image)
        return image

    add("set_up raises in place", raised)

    def refilled(c: Case, term: str, value: float, use: Any) -> Any:
        given = (c.factors if term == "factors" else c.additive).clone()
        model = c.model(**{term: given})
        given.fill(value)
        return use(model)

    for term in ("additive", "background", "factors"):
        use = lambda model: model.forward(model.domain_geometry().get_uniform_copy(1.0))  # noqa: E731
        add(f"refilled {term}", lambda c, t=term, u=use: refilled(c, t, 0.5, u), PROJECTED)
    for name in ("forward", "invert"):

        def sensitivity(c: Case, n: str = name) -> Any:
            model = c.pet.AcquisitionSensitivityModel(c.factors)
            model.set_up(c.prompts)
            return getattr(model, n)(c.prompts.get_uniform_copy(2.0))

        # Dead bins are divided by 1e-20: their number is what counts.
        add(f"sensitivity {name}", lambda c, s=sensitivity: s(c).minimum(1e6))

    def objective_at(name: str, *arguments: Any, prior: bool = False) -> Any:
        def call(c: Case) -> Any:
            x = c.truth + 0.5
            objective = c.objective(c.prior("RelativeDifferencePrior", x) if prior else None)
            return getattr(objective, name)(*(x if a is Case else a for a in arguments))

        return call

    add("objective value", objective_at("value", Case), 1e-5)
    add("objective value, prior", objective_at("value", Case, prior=True), 1e-5)
    add("subset sensitivity", objective_at("get_subset_sensitivity", 3), PROJECTED)
    add("acquisition ratio", objective_at("get_backprojection_of_acquisition_ratio", Case, 2), PROJECTED)
    add("objective gradient", objective_at("gradient", Case, prior=True), 0.05)
    add("subset gradient", objective_at("get_subset_gradient", Case, 4), 0.05)
    add("Hessian", objective_at("multiply_with_Hessian", Case, Case), RATIO)
    add("subset Hessian", objective_at("multiply_with_Hessian", Case, Case, 2, prior=True), RATIO)
    add("objective of a refilled term", _of_a_refilled_term, 1e-4)
    add("OSEM", lambda c: c.osem(), RATIO)
    add("OSEM, RDP", lambda c: c.osem(c.prior("RelativeDifferencePrior", c.truth)), RATIO)
    return found


def _of_a_changed_filter(c: Case, order: str) -> Any:
    found, image = c.pet.SeparableGaussianImageFilter(), c.random((3, 9, 9))
    wider = c.an_image(image.as_array(), (3, 9, 9), (8.0, 4.0, 5.0))
    steps = {
        "f": lambda: found.set_fwhms((4, 5, 6)), "g": lambda: found.set_fwhms((8, 8, 8)),
        "k": lambda: found.set_max_kernel_sizes((3, 3, 3)), "n": lambda: found.set_normalise(False),
        "s": lambda: found.set_up(image), "t": lambda: found.set_up(wider),
        "p": lambda: found.process(image), "q": lambda: found.process(wider),
    }  # fmt: skip
    return [done for step, done in [(step, steps[step]()) for step in order] if step in "pq"]


def _made(c: Case, model: Any, change: Any) -> Any:
    objective = c.pet.make_Poisson_loglikelihood(c.prompts, acq_model=model)
    change()
    objective.set_up(c.truth)
    return objective.value(c.truth + 0.5)


def _of_a_late_term(c: Case, term: str) -> Any:
    model = c.model(c.additive)
    return _made(c, model, lambda: getattr(model, f"set_{term}_term")(3 * c.additive))


def _of_a_refilled_background(c: Case, term: str) -> Any:
    given = {"additive": c.additive.clone(), "background": c.additive.clone()}
    return _made(c, c.model(**given), lambda: given[term].fill(1.0))


def _of_a_refilled_term(c: Case) -> Any:
    additive = c.additive.clone()
    objective = c.objective(additive=additive)
    additive.fill(1.0)
    return objective.value(c.truth + 0.5)


def result(pet: Any, call: Any) -> Any:
    """Result of a probe, or the name of what it raises, with those of its classes that scripts may catch."""
    try:
        return summary(call(Case(pet)))
    except Exception as problem:  # whatever SIRF raises is the result
        names = [kind.__name__ for kind in type(problem).__mro__]
        known = ("error", "ZeroDivisionError", "ValueError", "TypeError", "Exception")
        return "raises " + next(name for name in names if name in known)
