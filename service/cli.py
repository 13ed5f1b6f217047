"""The command line `kairos`. Answers go to standard output, progress and logs to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands import bounces, hygiene, reports
from service.commands import campaigns as campaign_commands
from service.commands import contacts as contacts_commands
from service.commands import hits as hits_commands
from service.commands import stop as stop_commands
from service.commands.shared import (
    AsOf,
    Json,
    answer,
    configure_logs,
    date_of,
    installation,
    instant_of,
    note,
    open_lake,
    outline,
    plain,
    progress,
)

if TYPE_CHECKING:
    from service.database import Database

# Heavy imports stand inside the commands: `kairos --help` answers at once.

app = typer.Typer(
    name="kairos",
    help="Decides for every contact whether to write, what to say and when, and learns from what happens next.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(bounces.app, name="bounces")
app.add_typer(hygiene.app, name="hygiene")


def _group(name: str, says: str) -> typer.Typer:
    group = typer.Typer(help=says, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name=name)
    return group


app.add_typer(reports.app, name="report")
imports = _group("import", "Bring history in from files.")
contacts_group = _group("contacts", "Contacts.")
contacts_group.add_typer(contacts_commands.app)
features = _group("features", "The feature store: lake and vectors.")
models = _group("models", "The model registry.")
outcomes = _group("outcomes", "What a model may be trained to foretell, as you declare it.")
experiments = _group("experiments", "Experiments: what they asked and what they showed.")
app.add_typer(campaign_commands.campaigns, name="campaigns")
app.add_typer(stop_commands.app)
app.add_typer(hits_commands.group, name="hits")
keys = _group("keys", "API keys.")
database_group = _group("db", "The database.")
simulate = _group("simulate", "The simulator on its own: worlds whose truth is known.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits 0, 1 (it failed, the reason is on standard error) or 2 (usage)."""
    try:
        app(args=None if arguments is None else list(arguments))
    except (KeyError, IndexError):
        raise  # a bug of ours, whose trace says more than its message
    except Exception as error:
        said = _reason(error)
        if said is None:
            raise
        print(f"kairos: {said}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def _reason(error: Exception) -> str | None:
    """What to tell the user of an error that is not a bug of ours, else None."""
    from pydantic import ValidationError
    from sqlalchemy.exc import DBAPIError

    from service.errors import ServiceError

    if isinstance(error, ValidationError):
        wrong = [f"KAIROS_{'_'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors()]
        return "; ".join(wrong)
    if isinstance(error, DBAPIError):
        return f"the database does not do what was asked ({error.orig}); `kairos doctor` looks for the cause"
    if isinstance(error, ServiceError | ValueError | LookupError | OSError):
        return str(error)
    return None


# ------------------------------------------------------------------------------------------------- the whole loop


@app.command()
def demo(
    contacts: Annotated[int, typer.Option(min=1, help="Simulated people.")] = 2000,
    days: Annotated[int, typer.Option(min=1, help="Days of simulated history.")] = 120,
    orders: Annotated[Path | None, typer.Option(help="Real order file instead of simulated purchases.")] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA zone of the order file's times.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same people.")] = 7,
    home: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("var/demo"),
    hour_effect: Annotated[bool, typer.Option(help="Whether the people prefer hours at all.")] = True,
    as_json: Json = False,
) -> None:
    """The whole loop once, from history to the learner's next snapshot, with real mail into a local sink.

    Example: kairos demo --contacts 2000 --days 120 --seed 7
    """
    from service.demo import DemoOptions, run_demo, summarise
    from service.settings import Settings

    configure_logs("WARNING")
    if orders is not None and not orders.is_file():
        from service.errors import NotFound

        raise NotFound(f"there is no file {orders}; name a .csv, .csv.gz or .parquet file of orders")
    options = DemoOptions(
        home=home,
        contacts=contacts,
        days=days,
        seed=seed,
        orders=orders,
        timezone=timezone or Settings().timezone,
        hour_effect=hour_effect,
    )
    report = run_demo(options, note)
    answer(report, as_json, summarise)
    if not as_json:
        start = "make serve" if home == Path("var/demo") else f"KAIROS_HOME={home} kairos serve"
        note(f"Look around: {start}, then http://127.0.0.1:8000/docs")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Also do the sending and learning.")] = True,
    processes: Annotated[int, typer.Option(min=1, max=64, help="API processes.")] = 1,
) -> None:
    """The API, and the worker beside it.

    Example: kairos serve --port 8000
    """
    import signal
    import threading

    import uvicorn

    from service.clock import SystemClock
    from service.worker import run

    with installation(lasting=True) as (settings, database):
        stop = threading.Event()
        # uvicorn passes the signal on once it has closed: without a handler that would end us before the worker has.
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        thread = None
        if worker:
            thread = threading.Thread(
                target=run,
                args=(database, settings, SystemClock(), stop),
                kwargs={"lake": open_lake(settings)},
                name="worker",
            )
            thread.start()
        note(f"Kairos answers at http://{host}:{port} (API: /docs), its home is {settings.home}")
        common: dict[str, Any] = {"host": host, "port": port, "log_config": None, "access_log": False}
        try:
            if processes == 1:
                from service.app import create_app

                uvicorn.run(create_app(settings, database), **common)
            else:
                uvicorn.run("service.app:from_environment", factory=True, workers=processes, **common)
        finally:
            stop.set()
            if thread is not None:
                thread.join(timeout=60)


@app.command("worker")
def work(
    once: Annotated[bool, typer.Option("--once", help="One round.")] = False,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Until there is nothing to do.")] = False,
    as_json: Json = False,
) -> None:
    """Settle, learn, decide, render and send, again and again.

    Example: kairos worker --until-idle
    """
    import signal
    import threading

    from service.clock import SystemClock
    from service.worker import run

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with installation(lasting=True) as (settings, database):
        rounds = run(
            database, settings, SystemClock(), stop, lake=open_lake(settings), once=once, until_idle=until_idle
        )
    answer({"rounds": rounds}, as_json, lambda report: f"{report['rounds']} rounds done")


# ---------------------------------------------------------------------------------------------------------- history


@imports.command("orders")
def import_orders_command(
    file: Annotated[Path, typer.Argument(help=".csv, .csv.gz or .parquet, one line an order line.")],
    columns: Annotated[
        list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Column of a field; may be repeated.")
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA zone of times that name none.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report only; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Orders and cancellations from a file; importing it twice changes nothing.

    Example: kairos import orders orders.csv --timezone Europe/London --map contact=Kunde
    """
    from datetime import datetime

    from service.imports import import_orders

    mapping = {}
    for pair in columns or []:
        field, equals, column = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is no FIELD=COLUMN", param_hint="--map")
        mapping[field] = column
    with installation() as (settings, database), progress("events") as step:
        report = import_orders(
            database,
            file,
            now=datetime.now(UTC),
            mapping=mapping,
            timezone=timezone or settings.timezone,
            currency=settings.currency,
            dry_run=dry_run,
            rejects_folder=settings.home / "rejected",
            progress=step,
        )
    answer(plain(report), as_json, lambda shown: _import_lines(shown, dry_run))


def _import_lines(report: dict[str, Any], dry_run: bool) -> str:
    lines = [
        f"{report['rows']:,} lines: {report['orders']:,} orders and {report['cancellations']:,} cancellations "
        f"of {report['contacts']:,} contacts, {report['first']} to {report['last']}",
        "read as " + ", ".join(f"{field}={column}" for field, column in report["columns"].items()),
        f"{report['set_aside']:,} lines set aside"
        + (f" into {report['rejects_path']}" if report["rejects_path"] else ""),
    ]
    lines += [f"  {count:,}  {reason}" for reason, count in report["reasons"].items()]
    stored = f"{report['events_stored']:,} events stored, {report['duplicates']:,} were known"
    return "\n".join([*lines, "nothing was written (dry run)" if dry_run else stored])


# --------------------------------------------------------------------------------------------------------- contacts


@contacts_group.command("erase")
def erase_contacts_command(
    user_ids: Annotated[list[str], typer.Argument(metavar="USER_ID…", help="The contacts' user_ids.")],
    as_json: Json = False,
) -> None:
    """Take everything that names or describes these contacts out of database and files, for good.

    Once they are out of the database it succeeds; what of their files has to wait, it names, and the worker does it.

    Example: kairos contacts erase 17850 13047
    """
    from service.erase import erase_contacts
    from service.erase_files import finish_erasures

    with installation() as (settings, database):
        erased = erase_contacts(database, settings, user_ids, now=datetime.now(UTC))
        try:
            files = finish_erasures(database, open_lake(settings), settings, now=datetime.now(UTC))
            told = plain(files) | {"error": None}
        except Exception as error:  # the contacts are erased all the same: to say only what failed would hide that
            told = {"finished": 0, "waiting": erased.contacts, "waits_for": None, "error": str(error)}
    answer(plain(erased) | {"files": told}, as_json, _erasure_lines)


def _erasure_lines(report: dict[str, Any]) -> str:
    lines = [f"{report['contacts']:,} contacts erased with {report['events']:,} events"]
    if report["sends_cancelled"]:
        lines.append(f"{report['sends_cancelled']:,} mails that had not left are cancelled")
    if report["sends_leaving"]:
        lines.append(f"{report['sends_leaving']:,} mails were leaving at that moment and may arrive")
    files = report["files"]
    if files["error"]:
        lines.append(
            f"they are out of the database; their files could not be rewritten yet: {files['error']}. `kairos worker` "
            "tries again every 15 minutes until it is done"
        )
    elif files["waiting"]:
        lines.append(
            f"the files of {files['waiting']:,} wait for {files['waits_for']}; `kairos worker` does them within 15 "
            "minutes of that"
        )
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------- feature store


@features.command("list")
def list_features(as_json: Json = False) -> None:
    """Every declared feature: definition, unit, null rule, family and owner.

    Example: kairos features list
    """
    from features.views import VIEW_SETS

    report = {
        "view_sets": [
            {"name": views.name, "version": views.version, "features": views.describe()} for views in VIEW_SETS.values()
        ]
    }
    answer(report, as_json, _listed_features)


def _listed_features(report: dict[str, Any]) -> str:
    lines: list[str] = []
    for views in report["view_sets"]:
        lines.append(f"view set {views['name']}, version {views['version']}: {len(views['features'])} features")
        families = dict.fromkeys(one["family"] for one in views["features"])
        for family in families:
            lines.append(f"\n  {family}")
            for one in views["features"]:
                if one["family"] == family:
                    lines.append(f"    {one['name']:24} {one['description']} [{one['unit']}; {one['null_rule']}]")
                    lines.append(f"    {'':24} {one['definition']}; owner {one['owner']}")
        lines.append("")
    return "\n".join(lines).rstrip()


@features.command("sync")
def sync_lake(as_json: Json = False) -> None:
    """Bring the lake up to the end of the log.

    Example: kairos features sync
    """
    with installation() as (settings, database), database.reading() as session:
        report = plain(open_lake(settings).sync(session))
    answer(report, as_json, lambda shown: f"{shown['rows']:,} events brought over, up to {shown['watermark']:,}")


@features.command("rebuild")
def rebuild_lake(as_json: Json = False) -> None:
    """Make the lake anew from the log.

    Example: kairos features rebuild
    """
    with installation() as (settings, database), database.reading() as session:
        report = plain(open_lake(settings).rebuild(session))
    answer(report, as_json, lambda shown: f"{shown['rows']:,} events, up to {shown['watermark']:,}")


@features.command("verify")
def verify_lake(as_json: Json = False) -> None:
    """Whether the lake holds exactly the log's events; fails if not.

    Example: kairos features verify
    """
    from service.erase import awaiting_files

    with installation() as (settings, database), database.reading() as session:
        report = plain(open_lake(settings).verify(session, awaiting_files))
    answer(report, as_json, _verify_lines)
    if not report["equal"]:
        raise typer.Exit(1)


def _verify_lines(report: dict[str, Any]) -> str:
    lines = [
        f"the lake equals the log up to {report['watermark']:,}"
        if report["equal"]
        else f"buckets {report['differing_buckets']} differ, files {report['damaged_files']} are damaged; "
        "run `kairos features rebuild`"
    ]
    if waiting := report["rows_awaiting_erasure"]:
        lines.append(f"{waiting:,} events of erased contacts wait in its files until the worker rewrites them")
    return "\n".join(lines)


@features.command("check")
def check_features_command(as_json: Json = False) -> None:
    """Freshness, drift of the models' features, replay of served vectors; stored; fails if something is wrong.

    Example: kairos features check
    """
    from service.feature_checks import check_features

    with installation() as (settings, database):
        report = check_features(database, open_lake(settings), now=datetime.now(UTC))
    answer(report, as_json, _check_lines)
    if not report["ok"]:
        raise typer.Exit(1)


def _check_lines(report: dict[str, Any]) -> str:
    fresh, replayed = report["freshness"], report["replay"]
    lines = []
    if fresh is not None:
        behind = fresh["events_behind"]
        lines.append(
            "lake     " + (f"was {behind:,} events behind the log" if behind else "has every event of the log")
        )
    for name, model in report["models"].items():
        drifts = [(one["psi"], feature) for feature, one in model["features"].items() if one["psi"] is not None]
        said = model["note"] or "{:,} vectors against {:,} at training; greatest PSI {:.2f} ({})".format(
            model["vectors"], model["reference_vectors"], *max(drifts)
        )
        lines.append(f"drift    {name} {model['version']}: {said}")
    if replayed is not None:
        skipped = "".join(f", {count:,} {why} left out" for why, count in replayed["skipped"].items())
        said = f"{replayed['mismatched']:,} mismatches in {replayed['compared']:,} served vectors{skipped}"
        if replayed["interval"] is not None:
            said += " (rate at 95 %: {:.2g} to {:.2g})".format(*replayed["interval"])
        lines.append(f"replay   {said}")
    return "\n".join([*lines, *(f"WRONG    {problem}" for problem in report["problems"])] or ["nothing to check"])


@features.command("get")
def get_vector(
    contact: Annotated[str, typer.Argument(help="The contact's user_id.")], as_of: AsOf = None, as_json: Json = False
) -> None:
    """A contact's vector, from the log itself.

    Example: kairos features get 17850 --as-of 2011-08-01
    """
    import math

    from features.contacts import find
    from features.online import online_features
    from features.views import DEFAULT_VIEWS
    from service.errors import NotFound

    with installation() as (settings, database), database.reading() as session:
        instant = instant_of(as_of, settings)
        found = find(session, [contact])
        if contact not in found:
            raise NotFound(f"there is no contact {contact!r}")
        vector = online_features(session, [found[contact]], instant, DEFAULT_VIEWS)[0].tolist()
    report = {
        "user_id": contact,
        "as_of": instant.isoformat(),
        "view_set": DEFAULT_VIEWS.version,
        "features": {
            name: value if math.isfinite(value) else None
            for name, value in zip(DEFAULT_VIEWS.names, vector, strict=True)
        },
    }
    answer(
        report,
        as_json,
        lambda shown: "\n".join(
            f"{name:34} {'-' if value is None else f'{value:g}'}" for name, value in shown["features"].items()
        ),
    )


@features.command("vectors")
def write_vectors_command(
    as_of: AsOf = None,
    views: Annotated[str, typer.Option(help="The view set, by name.")] = "default",
    out: Annotated[Path | None, typer.Option(help="One Parquet file to write, instead of the lake's snapshot.")] = None,
    as_json: Json = False,
) -> None:
    """The vectors of every contact as a snapshot beside the lake, or as one file.

    Example: kairos features vectors --as-of 2011-08-31 --out vectors.parquet
    """
    import time

    from features.snapshots import write_snapshot, write_vectors
    from features.tables import to_micros
    from features.views import VIEW_SETS

    if views not in VIEW_SETS:
        raise typer.BadParameter(f"there is no view set {views!r}; choose one of {', '.join(VIEW_SETS)}")
    chosen = VIEW_SETS[views]
    with installation() as (settings, database):
        instant, lake = instant_of(as_of, settings), open_lake(settings)
        with database.reading() as session:
            lake.sync(session)
        begin = time.perf_counter()
        if out is None:
            with database.reading() as session:
                snapshot = write_snapshot(lake, chosen, to_micros(instant), n_jobs=-1, session=session)
            rows, written = snapshot.rows, lake.store.locate(snapshot.folder)
        else:
            rows, written = write_vectors(lake, chosen, to_micros(instant), out), str(out)
    report = {
        "rows": rows,
        "columns": len(chosen.names),
        "view_set": f"{chosen.name}@{chosen.version}",
        "as_of": instant.isoformat(),
        "written": written,
        "seconds": round(time.perf_counter() - begin, 3),
    }
    answer(
        report,
        as_json,
        lambda shown: (
            f"{shown['rows']:,} vectors of {shown['columns']} columns ({shown['view_set']}) in "
            f"{shown['seconds']:.1f} s: {shown['written']}"
        ),
    )


# --------------------------------------------------------------------------------------------------------- models


@app.command()
def train(
    name: Annotated[
        str, typer.Argument(help="churn, conversion, send_hour, a declared outcome, or all (those three and yours).")
    ],
    as_of: AsOf = None,
    horizon_days: Annotated[int | None, typer.Option(min=1, max=365, help="Days the outcome is awaited.")] = None,
    seed: Annotated[int, typer.Option(help="The same log, instant and seed give the same model.")] = 0,
    as_json: Json = False,
) -> None:
    """Train, judge and register a model; it serves if it passes the gate.

    Example: kairos train all --as-of 2011-08-31
    """
    from service.jobs import MODELS, train_model

    with installation() as (settings, database):
        shipped, own = _outcome_names(database)
        wanted = [*MODELS, *own] if name == "all" else _model_names(name, [*MODELS, *shipped, *own])
        instant, lake = instant_of(as_of, settings), open_lake(settings)
        with database.reading() as session:
            lake.sync(session)
        report: dict[str, Any] = {"as_of": instant.isoformat(), "models": {}, "why": {}}
        for one in wanted:
            note(f"training {one}")
            try:
                trained = train_model(
                    database,
                    lake,
                    settings,
                    one,
                    as_of=instant,
                    now=datetime.now(UTC),
                    horizon_days=horizon_days,
                    seed=seed,
                )
            except ValueError as error:  # not enough data for this one is no reason to leave the others
                if len(wanted) == 1:
                    raise
                report["models"][one], report["why"][one] = None, str(error)
            else:
                report["models"][one] = plain(trained)
    answer(report, as_json, _trained_lines)
    if all(trained is None for trained in report["models"].values()):
        raise typer.Exit(1)


def _trained_lines(report: dict[str, Any]) -> str:
    lines = []
    for name, trained in report["models"].items():
        if trained is None:
            lines.append(f"{name:11} not trained: {report['why'][name]}")
            continue
        judged = ", ".join(
            f"{key} {trained['metrics'][key]:.3f}"
            for key in ("roc_auc", "recency_roc_auc", "brier", "ece")
            if isinstance(trained["metrics"].get(key), float)
        )
        fate = "serves" if trained["promoted"] else "does not serve"
        lines.append(f"{name:11} version {trained['version']} ({trained['rung']}) {fate}: {trained['gate']}; {judged}")
    return "\n".join(lines)


@app.command()
def score(
    model: Annotated[str, typer.Option(help="churn, conversion, send_hour, a declared outcome, or all.")] = "all",
    as_of: AsOf = None,
    out: Annotated[Path | None, typer.Option(help="Also write the scores into this .parquet file.")] = None,
    as_json: Json = False,
) -> None:
    """Score every contact and store the scores.

    Example: kairos score --model churn --out churn.parquet
    """
    from service.errors import NotFound
    from service.flow.predict import refresh_serving
    from service.jobs import MODELS, score_contacts
    from training.serving import Serving

    serving = Serving()
    scored: dict[str, Any] = {}
    frames = []
    with installation() as (settings, database):
        instant, lake = instant_of(as_of, settings), open_lake(settings)
        with database.reading() as session:
            lake.sync(session)
            refresh_serving(session, serving, now=datetime.now(UTC), wait=True)
        shipped, own = _outcome_names(database)
        for name in _model_names(model, [*dict.fromkeys([*MODELS, *shipped, *own, *serving.versions])]):
            served = serving.get(name)
            if served is None:
                if model != "all":
                    raise NotFound(f"no {name} model serves; run `kairos train {name}`")
                continue
            with progress(name) as step:
                done = 0

                def count(rows: int, step: Callable[[int, int], None] = step) -> None:
                    nonlocal done
                    done += rows
                    step(done, done)

                scores = score_contacts(database, lake, served, as_of=instant, progress=count)
            scored[name] = {"contacts": len(scores), "model_version": served.version}
            if out is not None:
                frames.append(_score_frame(database, name, served.version, scores, instant))
        if not scored:
            raise NotFound("no model serves; run `kairos train all`")
    report: dict[str, Any] = {"as_of": instant.isoformat(), "models": scored, "out": None if out is None else str(out)}
    if out is not None:
        import pandas as pd

        pd.concat(frames, ignore_index=True).to_parquet(out, index=False)
    answer(
        report,
        as_json,
        lambda shown: "\n".join(
            f"{name:11} {one['contacts']:,} contacts scored by version {one['model_version']}"
            for name, one in shown["models"].items()
        ),
    )


def _score_frame(database: Database, name: str, version: int, scores: Any, as_of: datetime) -> Any:
    import pandas as pd
    from sqlalchemy import select

    from service.tables import ContactRow

    with database.reading() as session:
        names = {key: user for key, user in session.execute(select(ContactRow.contact_key, ContactRow.user_id))}
    return pd.DataFrame(
        {
            "user_id": [names.get(int(key)) for key in scores.contact_key],
            "model": name,
            "probability": scores.probability,
            "as_of": pd.Timestamp(as_of),
            "model_version": version,
        }
    )


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """Every registered version, and which serves.

    Example: kairos models list
    """
    from training import registry

    with installation() as (settings, database):
        serving = _serving_versions(database)
        versions = registry.list_models(tracking_uri=settings.tracking_uri)
    report = {
        "models": [
            {
                "name": name,
                "serving_version": serving.get(name),
                "versions": [plain(version) for version in found],
            }
            for name, found in versions.items()
        ]
    }
    answer(report, as_json, _model_lines)


def _model_lines(report: dict[str, Any]) -> str:
    lines = [
        f"{model['name']:11} {version['version']:>3}  {version['created_at'][:19]}  {', '.join(version['aliases'])}"
        + ("  serves" if version["version"] == model["serving_version"] else "")
        for model in report["models"]
        for version in model["versions"]
    ]
    return "\n".join(lines) or "no model is registered; run `kairos train all`"


@models.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Name of the model.")], as_json: Json = False) -> None:
    """The version that serves: metrics, rung, data.

    Example: kairos models show churn
    """
    from service.errors import NotFound
    from training import registry

    with installation() as (settings, database):
        version = _serving_versions(database).get(name)
        if version is None:
            raise NotFound(f"no {name} model serves; run `kairos train {name}`")
        report = plain(registry.model_version(name, version, tracking_uri=settings.tracking_uri))
    answer(report, as_json, outline)


@models.command("promote")
def promote_model_command(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int, typer.Argument(min=1, help="Version that is to serve.")],
    as_json: Json = False,
) -> None:
    """Let a registered version serve.

    Example: kairos models promote churn 3
    """
    from service.jobs import promote_model

    with installation() as (settings, database):
        promote_model(database, settings, name, version, now=datetime.now(UTC))
    answer({"name": name, "version": version}, as_json, lambda _: f"{name} version {version} serves")


@models.command("rollback")
def rollback_model_command(
    name: Annotated[str, typer.Argument(help="Name of the model.")], as_json: Json = False
) -> None:
    """Let the version before serve again.

    Example: kairos models rollback churn
    """
    from service.jobs import rollback_model

    with installation() as (settings, database):
        version = rollback_model(database, settings, name, now=datetime.now(UTC))
    answer({"name": name, "version": version}, as_json, lambda _: f"{name} version {version} serves again")


@models.command("quality")
def model_quality_command(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Judged scorings to show.")] = 10,
    as_json: Json = False,
) -> None:
    """Whether the scores were right: every scoring whose horizon has passed, against what happened.

    Example: kairos models quality churn
    """
    from service.model_quality import judge_due, quality

    with installation() as (settings, database):
        lake = open_lake(settings)
        with database.reading() as session:
            lake.sync(session)
        judge_due(database, lake, now=datetime.now(UTC))
        with database.reading() as session:
            report = plain(quality(session, name, limit=limit))
    answer(report, as_json, _quality_lines)


def _quality_lines(report: dict[str, Any]) -> str:
    waiting, test = report["waiting"], report["test"]
    lines = [report["says"]] if report["says"] else []
    for one in report["history"]:
        head = f"{one['as_of'][:10]}  version {one['version']} ({one['rung']}, {one['role']})"
        if "metrics" not in one:
            lines.append(f"{head}: {one['note']}")
            continue
        figures, left_out = one["metrics"], f", {one['left_out']:,} left out" if one["left_out"] else ""
        lines.append(
            f"{head}: {one['judged']:,} judged{left_out}; ROC AUC {figures['roc_auc']:.3f}, Brier "
            f"{figures['brier']:.3f}, predicted/actual {figures['predicted_over_actual']:.2f}"
        )
        lines += [f"  ALARM {alarm}" for alarm in one["alarms"]]
    if waiting["scorings"]:
        lines.append(f"{waiting['scorings']} scorings wait for their horizon, the next until {waiting['next_due_at']}")
    if test["outcomes"]:
        lines.append(
            f"against {test['fallback']}: e-value {test['e_value']:.3g} after "
            f"{test['outcomes']:,} outcomes; {test['needed']:.0f} would prove that the model does worse"
        )
    lines += [f"{one['at'][:19]}  {one['kind']} version {one['version']}: {one['reason']}" for one in report["events"]]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- outcomes


@outcomes.command("list")
def list_outcomes_command(as_json: Json = False) -> None:
    """Every outcome, those that ship and those you declared, with live counts against what a model takes.

    Example: kairos outcomes list
    """
    from service.outcomes import list_outcomes, shown_outcomes

    with installation() as (settings, database):
        lake, now = open_lake(settings), datetime.now(UTC)
        with database.reading() as session:
            lake.sync(session)
            found = list_outcomes(session)
        report = {"outcomes": shown_outcomes(database, lake, found, now=now)}
    answer(report, as_json, lambda shown: "\n\n".join(map(_outcome_lines, shown["outcomes"])))


@outcomes.command("declare")
def declare_outcome_command(
    file: Annotated[Path, typer.Argument(help="A declaration in YAML or JSON.")],
    replace: Annotated[bool, typer.Option("--replace", help="In the place of another of that name.")] = False,
    as_json: Json = False,
) -> None:
    """Declare an outcome: who will, or will not, do what within how many days. `kairos train NAME` makes a model of it.

    Example: kairos outcomes declare silent_regulars.yaml
    """
    from service.errors import NotFound
    from service.outcomes import declare, find_outcome, shown_outcomes
    from training.outcomes import read

    if not file.is_file():
        raise NotFound(f"there is no file {file}; name a declaration in YAML or JSON")
    declaration = read(file.read_text(encoding="utf-8"))
    with installation() as (settings, database):
        lake, now = open_lake(settings), datetime.now(UTC)
        with database.writing() as session:
            created = declare(session, declaration, now=now, replace=replace)
        with database.reading() as session:
            lake.sync(session)
            found = find_outcome(session, declaration.name)
        report = shown_outcomes(database, lake, [found], now=now)[0]
    answer(report | {"created": created}, as_json, _outcome_lines)


def _outcome_lines(outcome: dict[str, Any]) -> str:
    counts = outcome["counts"]
    version = outcome["model_version"]
    return "\n".join(
        (
            f"{outcome['name']}: {outcome['says']}" + ("  (ships with Kairos)" if outcome["is_shipped"] else ""),
            f"  {counts['population']:,} contacts are asked about now; a horizon ago {counts['closed']:,}, of whom "
            f"{counts['with_outcome']:,} had the outcome and {counts['without_outcome']:,} had not",
            f"  {counts['says']}",
            f"  model version {version} serves" if version else f"  no model serves; `kairos train {outcome['name']}`",
        )
    )


# ---------------------------------------------------------------------------------------------------- experiments

ExperimentId = Annotated[str, typer.Argument(metavar="ID", help="Id of the experiment.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the history.")]


@experiments.command("list")
def list_experiments_command(as_json: Json = False) -> None:
    """Every experiment, newest first, with its arms.

    Example: kairos experiments list
    """
    from sqlalchemy import select

    from service.experiments import shown_experiments
    from service.tables import ExperimentRow

    with installation() as (_, database), database.reading() as session:
        rows = session.scalars(select(ExperimentRow).order_by(ExperimentRow.created_at.desc())).all()
        report = {"experiments": plain(shown_experiments(session, rows))}
    answer(report, as_json, lambda shown: "\n".join(map(_experiment_line, shown["experiments"])) or "none yet")


def _experiment_line(shown: dict[str, Any]) -> str:
    arms = ", ".join(arm["id"] + ("" if arm["status"] == "running" else f" ({arm['status']})") for arm in shown["arms"])
    return f"{shown['id']}  {shown['status']:8} {shown['name']}: {shown['reward']}, {shown['policy']}; {arms}"


@experiments.command("show")
def show_experiment_command(experiment_id: ExperimentId, as_json: Json = False) -> None:
    """What an experiment asks, its arms, and what befell it.

    Example: kairos experiments show exp_1a2b3c
    """
    from service.experiments import find_experiment, planning, shown_experiment

    with installation() as (_, database), database.reading() as session:
        report = plain(shown_experiment(session, experiment_id))
        report["planning"] = planning(session, find_experiment(session, experiment_id))
    answer(report, as_json, _experiment_lines)


def _experiment_lines(shown: dict[str, Any]) -> str:
    lines = [_experiment_line(shown)]
    lines += [f"  {arm['id']}: {arm['content'][:100]!r}" for arm in shown["arms"]]
    lines += [f"  {sentence}" for sentence in shown["planning"]["sentences"]]
    lines += [f"  {entry['at'][:19]}  {entry['what']} ({entry['who']})" for entry in shown["history"]]
    return "\n".join(lines)


@experiments.command("report")
def report_experiment_command(
    experiment_id: ExperimentId,
    png: Annotated[Path | None, typer.Option("--png", help="Write the picture to this file too.")] = None,
    as_json: Json = False,
) -> None:
    """What an experiment has shown: the verdict, each arm with its interval, value, checks.

    Example: kairos experiments report exp_1a2b3c --png report.png
    """
    from service.experiments import experiment_report, plot_report

    with installation() as (_, database), database.reading() as session:
        report = experiment_report(session, experiment_id, now=datetime.now(UTC))
    if png is not None:
        png.write_bytes(plot_report(report))
        note(f"picture written to {png}")
    answer(plain(report), as_json, _report_lines)


def _report_lines(report: dict[str, Any]) -> str:
    matured = report["matured"]
    lines = [
        f"{report['name']} ({report['id']}, {report['status']}): {report['verdict']['sentence']}",
        f"  from {matured['units']:,} {matured['unit']}s whose window of {matured['window_hours']:g} h is over; "
        f"{matured['pending']:,} still open",
    ]
    means = {one["arm"]: one["mean"] for one in report["means"]}
    for arm in report["arms"]:
        mean = means[arm["id"]]
        told = mean["why"] or f"{mean['estimate']:.4g} ({mean['lower']:.4g} to {mean['upper']:.4g})"
        probability = (
            "not in the draw" if arm["probability"] is None else f"drawn with {100 * arm['probability']:.0f} %"
        )
        lines.append(f"  {arm['id']}: {arm['successes']:,} of {arm['sends']:,} so far; mean {told}; {probability}")
        if arm["status"] != "running":
            lines.append(f"    {arm['status']}: {arm['status_reason']}")
    lines += [f"  {one['sentence']}" for one in report["comparisons"]]
    for name, says in (("against_uniform", "against an even split"), ("against_holdout", "against the holdout")):
        value = report[name]
        why = value.get("why") or value["total"]["why"]
        total = why or "{estimate:,.0f} ({lower:,.0f} to {upper:,.0f})".format(**value["total"])
        lines.append(f"  earned {says}: {total}")
    sample = report["sample_ratio"]
    lines.append(f"  draws: {sample.get('why') or sample['sentence']}")
    return "\n".join(lines)


def _turn(name: str, says: str) -> None:
    """Register a command that turns an experiment, or one of its arms."""

    def command(
        experiment_id: ExperimentId,
        arm: Annotated[str | None, typer.Option("--arm", help="Only this arm.")] = None,
        reason: Reason = "",
        as_json: Json = False,
    ) -> None:
        from service import experiments as doing

        turn_experiment, turn_arm = {
            "pause": (doing.pause_experiment, doing.pause_arm),
            "resume": (doing.resume_experiment, doing.resume_arm),
            "end": (doing.end_experiment, doing.retire_arm),
        }[name]
        told: dict[str, Any] = {"reason": reason, "who": "command line", "now": datetime.now(UTC)}
        with installation() as (_, database), database.writing() as session:
            if arm is None:
                turn_experiment(session, experiment_id, **told)
            else:
                turn_arm(session, experiment_id, arm, **told)
            report = plain(doing.shown_experiment(session, experiment_id))
        answer(report, as_json, _experiment_line)

    command.__doc__ = f"{says}\n\n    Example: kairos experiments {name} exp_1a2b3c --reason 'sale is over'\n    "
    experiments.command(name)(command)


_turn("pause", "Draw none of its arms (or not this one) until it is resumed.")
_turn("resume", "Draw again.")
_turn("end", "Draw no more, for good; an arm is retired. Rewards still to come are counted.")


@experiments.command("evaluate")
def evaluate_experiment_command(
    experiment_id: Annotated[str, typer.Argument(help="Id of the experiment.")],
    policy: Annotated[str | None, typer.Option(help="uniform, best_arm, or logged (what ran: a check).")] = None,
    arm: Annotated[str | None, typer.Option(help="Always this arm.")] = None,
    weights: Annotated[str | None, typer.Option(help="A fixed split, as in a=.2,b=.8.")] = None,
    snapshot: Annotated[str | None, typer.Option(help="The probabilities of a stored snapshot.")] = None,
    since: Annotated[str | None, typer.Option(help="Decisions from here on; a date: from its start.")] = None,
    until: Annotated[str | None, typer.Option(help="Decisions before this instant; a date: to its end.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Give values where they would be refused.")] = False,
    as_json: Json = False,
) -> None:
    """What another policy would have earned on the experiment's own log, with intervals, or why nobody can tell.

    Example: kairos experiments evaluate exp_3f2a9c51b0de --policy uniform --since 2026-03-01 --until 2026-03-31
    """
    from service.evaluation import evaluate_experiment

    given = {"policy": policy, "arm": arm, "snapshot": snapshot, "weights": _weights(weights) if weights else None}
    target = {kind: wanted for kind, wanted in given.items() if wanted is not None}
    if len(target) != 1:
        raise typer.BadParameter("name one target: --policy, --arm, --weights or --snapshot")
    with installation() as (settings, database), database.reading() as session:
        report = evaluate_experiment(
            session,
            experiment_id,
            target,
            now=datetime.now(UTC),
            since=instant_of(since, settings, "--since", end_of_day=False) if since else None,
            until=instant_of(until, settings, "--until") if until else None,
            force=force,
        )
    answer(report, as_json, _evaluation_lines)


def _weights(text: str) -> dict[str, float]:
    try:
        pairs = [pair.rsplit("=", 1) for pair in text.split(",")]
        return {name.strip(): float(weight) for name, weight in pairs}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no split; write a=.2,b=.8", param_hint="--weights") from None


def _evaluation_lines(report: dict[str, Any]) -> str:
    used, checked = report["decisions"], report["diagnostics"]
    left_out = ", ".join(f"{n:,} {why}" for why, n in used["left_out"].items() if n)
    lines = [
        report["says"],
        f"{used['used']:,} decisions of {used['contacts']:,} contacts{f'; left out: {left_out}' if left_out else ''}",
        f"worth {checked['ess']:,.0f} of the target's own (ESS); greatest weight {checked['max_weight']:.3g}, "
        f"least propensity {checked['least_propensity']:.3g}"
        + ("" if checked["mean_weight"] is None else f", mean weight {checked['mean_weight']:.3f}"),
    ]
    for one in report["estimates"]:
        if one["value"] is not None:
            low, high = one["interval"]
            lines.append(
                f"  {one['estimator']:12} {one['value']:10.5g}  {low:10.5g} to {high:<10.5g}  gain {one['gain']:+.5g}"
            )
    if used["events_behind"]:
        lines.append(
            f"{used['events_behind']:,} events of the log wait for the worker; `kairos worker --once` reads them"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------ simulator


@simulate.command("world")
def simulate_world(
    contacts: Annotated[int, typer.Option(min=1, help="Simulated people.")] = 2000,
    days: Annotated[int, typer.Option(min=1, help="Days of history.")] = 120,
    seed: Annotated[int, typer.Option(help="The same seed gives the same world.")] = 7,
    start: Annotated[str, typer.Option(help="First day.")] = "2025-11-01",
    out: Annotated[Path | None, typer.Option(help="Write the history here, one Segment message a line.")] = None,
    as_json: Json = False,
) -> None:
    """A world of people whose habits are known: their orders, visits and answers.

    Example: kairos simulate world --contacts 500 --days 60 --out world.jsonl
    """
    from collections import Counter

    from features.tables import from_micros
    from training.simulation import World

    world = World.generate(contacts, days, seed, start=datetime.combine(date_of(start), time(), UTC))
    history = world.history(world.end)
    if out is not None:
        with out.open("w", encoding="utf-8") as file:
            for event in history:
                message = {
                    "type": "track",
                    "event": event.kind,
                    "userId": event.user_id,
                    "messageId": event.message_id,
                    "timestamp": from_micros(event.occurred_at).isoformat(),
                    "properties": event.properties or {},
                }
                file.write(json.dumps(message) + "\n")
    report = {
        "contacts": len(world.user_ids),
        "events": len(history),
        "by_name": dict(Counter(event.kind for event in history).most_common()),
        "start": from_micros(world.start).isoformat(),
        "end": world.end.isoformat(),
        "out": None if out is None else str(out),
    }
    answer(report, as_json, outline)


@simulate.command("responses")
def simulate_responses_command(
    seeds: Annotated[int, typer.Option(min=2, help="Runs with unlike arms.")] = 100,
    runs: Annotated[int, typer.Option(min=2, help="Runs with identical arms.")] = 200,
    seed: Annotated[int, typer.Option(help="First seed.")] = 7,
    as_json: Json = False,
) -> None:
    """The policies against the truth: captured gain, false preferences, delay, drift; fails outside its bounds.

    Example: kairos simulate responses --seeds 100 --runs 200
    """
    from training.worlds_report import responses_report

    report = responses_report(seeds, runs, seed=seed)
    answer(report, as_json, _figures)
    outside = [name for name, figure in report.items() if not figure["within"]]
    if outside:
        note(f"kairos: outside its bound: {', '.join(outside)}")
        raise typer.Exit(1)


@simulate.command("headlines")
def simulate_headlines_command(
    file: Annotated[Path, typer.Argument(help="Parquet file of the Upworthy Research Archive: a headline a row.")],
    tests: Annotated[int, typer.Option(min=2, help="Tests drawn at random from the valid ones.")] = 400,
    draws: Annotated[int, typer.Option(min=1, help="True rates and clicks drawn anew.")] = 20,
    seed: Annotated[int, typer.Option(help="The same seed draws the same.")] = 0,
    as_json: Json = False,
) -> None:
    """What a bandit would have earned on real headline tests, as share of (oracle - uniform).

    Example: kairos simulate headlines upworthy.parquet --tests 400 --draws 20
    """
    from training.headlines import headlines_report, read_headline_tests

    if not file.is_file():
        from service.errors import NotFound

        raise NotFound(f"there is no file {file}; name a .parquet file of the Upworthy Research Archive")
    report = headlines_report(read_headline_tests(file, tests, seed=seed), draws=draws, seed=seed)
    answer(report, as_json, _captured)


def _captured(report: Mapping[str, Any]) -> str:
    """The table of captured shares with their intervals."""
    lines = [f"{report['tests']} tests, {report['draws']} draws, mean rate {report['mean_rate']:.4f}"]
    lines += [
        f"{row['sends']:>7,}  {row['way']:36} {row['captured']:6.3f}  [{row['low']:.3f}, {row['high']:.3f}]"
        for row in report["captured"]
    ]
    return "\n".join(lines)


def _figures(report: Mapping[str, Any]) -> str:
    """One line a figure: value, standard error, bound."""
    width = max(map(len, report))
    lines = []
    for name, figure in report.items():
        error = "" if figure["standard_error"] is None else f"± {figure['standard_error']:.4f}"
        mark = "" if figure["within"] else "  OUTSIDE"
        lines.append(f"{name:{width}}  {figure['value']:8.4f} {error:9}  {figure.get('bound', '')}{mark}".rstrip())
    return "\n".join(lines)


@simulate.command("reports")
def simulate_reports_command(
    runs: Annotated[int, typer.Option(min=2, help="Runs of each world.")] = 1000,
    seed: Annotated[int, typer.Option(help="First seed.")] = 11,
    as_json: Json = False,
) -> None:
    """Reports and guardrails against the truth: errors at any look, power, coverage; fails outside its bounds.

    Example: kairos simulate reports --runs 100
    """
    from training.inference_worlds import broken_bounds, reports_report

    report = reports_report(runs, seed=seed)
    answer(report, as_json, outline)
    broken = broken_bounds(report)
    for line in broken:
        note(f"kairos: {line}")
    if broken:
        raise typer.Exit(1)


# ----------------------------------------------------------------------------------------------------- operations


@keys.command("create")
def create_key_command(
    scope: Annotated[list[str], typer.Option(help="ingest, read, write, send or admin; may be repeated.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    as_json: Json = False,
) -> None:
    """A new key. Its secret is shown this once.

    Example: kairos keys create --name shop --scope ingest --scope read
    """
    from service.keys import create_key

    with installation() as (_, database), database.writing() as session:
        key_id, secret = create_key(session, name, scope, datetime.now(UTC))
    report = {"key_id": key_id, "name": name, "scopes": sorted(set(scope)), "secret": secret}
    answer(report, as_json, lambda shown: f"{shown['secret']}\n(key {key_id}; keep the secret, it is not shown again)")


@keys.command("list")
def list_keys_command(as_json: Json = False) -> None:
    """Every key, without its secret.

    Example: kairos keys list
    """
    from service.keys import list_keys

    with installation() as (_, database), database.reading() as session:
        report = {
            "keys": [
                {
                    "key_id": row.key_id,
                    "name": row.name,
                    "scopes": row.scopes,
                    "created_at": row.created_at.isoformat(),
                    "revoked_at": None if row.revoked_at is None else row.revoked_at.isoformat(),
                }
                for row in list_keys(session)
            ]
        }
    answer(
        report,
        as_json,
        lambda shown: (
            "\n".join(
                f"{key['key_id']}  {key['name']:20} {', '.join(key['scopes'])}"
                + (f"  revoked {key['revoked_at'][:19]}" if key["revoked_at"] else "")
                for key in shown["keys"]
            )
            or "there is no key; make one with `kairos keys create --scope …`"
        ),
    )


@keys.command("revoke")
def revoke_key_command(key_id: Annotated[str, typer.Argument(help="Id of the key.")], as_json: Json = False) -> None:
    """Take a key out of use, everywhere within seconds.

    Example: kairos keys revoke 3f2a9c51b0de
    """
    from service.keys import revoke_key

    with installation() as (_, database), database.writing() as session:
        revoke_key(session, key_id, datetime.now(UTC))
    answer({"key_id": key_id, "revoked": True}, as_json, lambda _: f"key {key_id} is revoked")


@database_group.command("upgrade")
def upgrade_database(as_json: Json = False) -> None:
    """Bring the tables to this version.

    Example: kairos db upgrade
    """
    from service.checks import check_database
    from service.database import Database
    from service.settings import Settings

    settings = Settings()
    configure_logs(settings.log_level)
    database = Database(settings.database)
    try:
        database.upgrade()
        report = plain(check_database(database))
    finally:
        database.close()
    answer(report, as_json, lambda shown: str(shown["says"]))


@database_group.command("clock")
def log_clock(
    set_back: Annotated[
        bool, typer.Option("--set-back", help="Let the log follow this machine's clock again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The instant up to which the log has received events, beside this machine's clock.

    A machine whose clock ran ahead leaves the log's clock in the future; events are then refused until it is set back.

    Example: kairos db clock
    """
    from features.events import set_clock_back
    from features.tables import current, from_micros, to_micros

    now = datetime.now(UTC)
    with installation() as (_, database):
        if set_back:
            with database.writing() as session:
                set_clock_back(session, to_micros(now))
        with database.reading() as session:
            clock = current(session, "event_clock")
    received = from_micros(clock).isoformat() if clock else None
    report = {"log": received, "now": now.isoformat(), "seconds_ahead": max(0.0, (clock - to_micros(now)) / 1e6)}
    answer(
        report,
        as_json,
        lambda shown: (
            f"the log received its newest event at {shown['log'] or '-'}, this machine's clock says {shown['now']}"
            + ("; `kairos db clock --set-back` sets it right" if shown["seconds_ahead"] else "")
        ),
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at settings, database, lake, models, mail server and the sender's set-up, and say what to do.

    Example: kairos doctor
    """
    from service.bounces import check_streams
    from service.checks import (
        Check,
        check_database,
        check_halts,
        check_lake,
        check_mail,
        check_models,
        check_sender,
        check_signing,
    )
    from service.database import Database
    from service.settings import Settings

    configure_logs("ERROR")
    settings = Settings()
    checks = [Check("settings", True, f"home {settings.home.resolve()}, zone {settings.timezone}, {settings.currency}")]
    database = Database(settings.database)
    try:
        checks += [check_database(database), check_lake(settings), check_models(database), check_mail(settings)]
        checks.append(check_signing(settings))
        checks += [check_halts(database), check_streams(database, datetime.now(UTC)), *check_sender(settings)]
    finally:
        database.close()
    report = {"ok": all(check.ok for check in checks), "checks": [plain(check) for check in checks]}
    answer(
        report,
        as_json,
        lambda shown: "\n".join(
            f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']:14} {check['says']}" for check in shown["checks"]
        ),
    )
    if not report["ok"]:
        raise typer.Exit(1)


# --------------------------------------------------------------------------------------------------------- shared


def _serving_versions(database: Database) -> dict[str, int]:
    from sqlalchemy import select

    from service.tables import ServingModelRow

    with database.reading() as session:
        return {
            name: version for name, version in session.execute(select(ServingModelRow.name, ServingModelRow.version))
        }


def _outcome_names(database: Database) -> tuple[list[str], list[str]]:
    """Names of the outcomes that ship, and of those that were declared."""
    from service.outcomes import list_outcomes

    with database.reading() as session:
        found = list_outcomes(session)
    shipped, own = ([one.declaration.name for one in found if one.is_shipped is which] for which in (True, False))
    return shipped, own


def _model_names(name: str, known: Sequence[str]) -> list[str]:
    if name != "all" and name not in known:
        raise typer.BadParameter(f"there is no model {name!r}; choose from {', '.join(known)} or all")
    return list(known) if name == "all" else [name]


if __name__ == "__main__":
    main()
