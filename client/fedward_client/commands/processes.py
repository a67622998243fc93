"""The site's processes: `run` starts them all, each can be a service unit of its own."""

import os

import typer

from fedward_client.commands.options import DEFAULT_CONFIG, Config, Debug, load

app = typer.Typer()


@app.command()
def run(config: Config = DEFAULT_CONFIG, debug: Debug = False) -> None:
    """Run this site: guard, gateway, SuperNode and worker, until stopped."""
    del debug
    from fedward_client.site_run import run_site

    run_site(load(config))


@app.command(hidden=True)
def guard(config: Config) -> None:
    """The guard process (started by `run`, or by its own service unit)."""
    os.umask(0o077)
    from fedward_client.adapters.flower_records import object_ids
    from fedward_client.guard.main import run_guard

    run_guard(load(config, process="guard"), object_ids=object_ids)


@app.command(hidden=True)
def gateway(config: Config) -> None:
    """The gateway process (started by `run`, or by its own service unit)."""
    os.umask(0o077)
    from fedward_client.gateway.process import GatewayConfig, run_gateway

    run_gateway(GatewayConfig.of(load(config, process="gateway")))


@app.command(hidden=True)
def worker(config: Config) -> None:
    """The worker process (started by `run`, or by its own service unit)."""
    os.umask(0o077)
    from fedward_client.isolation.flower import worker_environment, worker_secret

    settings = load(config, process="worker")
    os.environ.update(worker_environment(settings))
    # Everything a task needs is imported here once: tasks are forks of this process.
    import fedward_client.flower_app  # noqa: F401
    from fedward_client.adapters.flower_worker import run_worker
    from fedward_client.training.warm_up import warm_up

    warm_up(opacus=settings.backend == "opacus", images=bool(settings.images))
    run_worker(runtime_port=settings.ports.runtime, secret_file=worker_secret(settings))


@app.command(hidden=True)
def arrange(config: Config) -> None:
    """Make the site's folders and give each user its own (root, before the service units)."""
    os.umask(0o077)
    from fedward_client.isolation.accounts import SiteAccounts
    from fedward_client.isolation.arrange import arrange as arrange_site

    settings = load(config, process="arrange")
    arrange_site(settings, SiteAccounts.of(settings))


@app.command(hidden=True)
def supernode(config: Config) -> None:
    """Flower's SuperNode, in this process's place (started by its own service unit)."""
    os.umask(0o077)
    from fedward_client.isolation.flower import exec_supernode

    exec_supernode(load(config, process="supernode"))
