"""What draws for an evaluation. It stands here because the stages of the core do not import each other."""

from lumina_cli.cli import output


def make_generator(model: str | None, ceiling: bool, seed: int, plan: str, preset: str | None = None):
    """Lend the sampling pipeline, with `plan` over the preset's or its own, to the evaluation.

    With `ceiling` it is lent true renders.
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
        output.note(pipeline.reason)
    return pipeline_generator(pipeline, Job, seed)
