"""The image generator of an evaluation: composed here, as `evals` may not import `sampling`."""

from lumina_cli.cli import output


def make_generator(model: str | None, ceiling: bool, seed: int, plan: str, preset: str | None = None):
    """Return a generator of images for an evaluation: a sampling pipeline or, with `ceiling`, the renderer.

    `plan` overrides settings of the preset or of the model's own plan.
    """
    from lumina_cli.core.evals.run import ground_truth_generator, pipeline_generator
    from lumina_cli.core.flow.plan import read_settings
    from lumina_cli.core.sampling.pipeline import Job, load_pipeline

    if ceiling:
        return ground_truth_generator(model or "nano", seed)
    settings = read_settings(plan)
    pipeline = load_pipeline(model)
    if settings or preset:
        pipeline.plan = pipeline.plan_for(settings, preset)
    if pipeline.reason:
        output.write_note(pipeline.reason)
    return pipeline_generator(pipeline, Job, seed)
