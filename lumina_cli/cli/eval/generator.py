"""The image generator of an evaluation: composed here, as `evals` may not import `sampling`."""

from dataclasses import dataclass

from lumina_cli.cli import output


@dataclass(frozen=True)
class MakeGenerator:
    """Calls `make_generator`, also in a worker."""

    model: str
    ceiling: bool
    seed: int
    plan: str
    preset: str | None = None
    frozen: str | None = None

    def __call__(self, planned: bool = False):
        """Return the generator; a `planned` one has its settings, but cannot generate."""
        return make_generator(
            self.model, self.ceiling, self.seed, self.plan, self.preset, planned, self.frozen
        )


def make_opener(
    model: str | None, ceiling: bool, seed: int, plan: str, preset: str | None, frozen: str | None = None
) -> MakeGenerator:
    """Return what opens the generator on each worker; "auto" is resolved here, once for all workers."""
    from lumina_cli.core.models.locate import choose_model

    choice = choose_model(model or "nano", frozen)
    if choice.reason:
        output.write_note(choice.reason)
    return MakeGenerator(choice.name, ceiling, seed, plan, preset, frozen)


def make_generator(
    model: str | None,
    ceiling: bool,
    seed: int,
    plan: str,
    preset: str | None = None,
    planned: bool = False,
    frozen: str | None = None,
):
    """Return a generator of images for an evaluation: a sampling pipeline or, with `ceiling`, the renderer.

    `plan` overrides settings of the preset or of the model's own plan. With `planned` no weights are read,
    and the generator only has settings. `frozen` is that of `choose_model`.
    """
    from lumina_cli.core.evals.run import ground_truth_generator, pipeline_generator
    from lumina_cli.core.flow.plan import read_settings
    from lumina_cli.core.models.locate import choose_model
    from lumina_cli.core.sampling.pipeline import Job, load_pipeline

    if ceiling:
        return ground_truth_generator(model or "nano", seed)
    settings = read_settings(plan)
    if planned:
        from lumina_cli.core.sampling.parallel.rows import plan_model

        pipeline = plan_model(choose_model(model, frozen) if frozen else model)
    else:
        pipeline = load_pipeline(choose_model(model, frozen) if frozen else model)
    if settings or preset:
        pipeline.plan = pipeline.plan_for(settings, preset)
    if pipeline.reason:
        output.write_note(pipeline.reason)
    return pipeline_generator(pipeline, Job, seed)
