"""Databases of earlier and later formats: migrated, used as they are, or refused."""

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from queue_helpers import IMAGE, request, wait_finished

from kinema.errors import InvalidRequest, QueueUnavailable
from kinema.jobs import NewJob, Queue
from kinema.jobs.file_table import new_file_id
from kinema.jobs.job_schema import FORMAT, IDENTITY, JOBS, METADATA, OLDEST_READER
from kinema.settings import Settings

# The columns and indexes that later formats added to format 2.
ADDED_COLUMNS = {
    "kinema_jobs": ["owner", "turn", "work", "traceparent", "last_image", "extend", "finishing_work"],
    "kinema_database": ["oldest_reader"],
    "kinema_deletions": ["last_image"],
    "kinema_batches": ["idempotency_key", "fingerprint"],
}
ADDED_TABLES = ["kinema_scheduler"]


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path, task_log):
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    return Settings(data_dir=tmp_path / "data", database_url=url, min_free_gb=0)


@pytest.fixture
def engine(settings):
    """The tests' own connections to the database, which has one completed and one queued job."""
    with Queue(settings, "queue_work:Work") as queue:
        wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    with Queue(settings) as queue:
        queue.submit(NewJob(request(seed=8), image=IMAGE))
    url = settings.database_url
    driver = url and url.get_secret_value().replace("postgresql://", "postgresql+psycopg://")
    engine = sa.create_engine(driver or f"sqlite:///{settings.data_dir}/jobs.sqlite3")
    yield engine
    engine.dispose()


def set_format(engine, number, oldest_reader=OLDEST_READER):
    with engine.begin() as connection:
        connection.execute(IDENTITY.update().values(format=number, oldest_reader=oldest_reader))


def revert_to_format_2(engine):
    with engine.begin() as connection:
        connection.execute(IDENTITY.update().values(format=2))
        for statement in (
            "DROP INDEX kinema_jobs_order",
            "DROP INDEX kinema_jobs_owner",
            "DROP INDEX kinema_jobs_rank",
            "DROP INDEX ix_kinema_jobs_last_image",
            "DROP INDEX kinema_batches_key",
            *(f"ALTER TABLE {table} DROP COLUMN {name}" for table, names in ADDED_COLUMNS.items() for name in names),
            *(f"DROP TABLE {table}" for table in ADDED_TABLES),
            "CREATE INDEX kinema_jobs_order ON kinema_jobs (status, priority, seq)",
        ):
            connection.exec_driver_sql(statement)


@pytest.mark.filterwarnings("ignore:.*expression-based index")
def test_jobs_of_format_2_are_kept_and_run(settings, engine):
    revert_to_format_2(engine)
    with Queue(settings, "queue_work:Work") as queue:
        queued, completed = queue.list().jobs
        assert completed.status == "completed"
        assert wait_finished(queue, queued).status == "completed"
    with engine.connect() as connection:
        others = {"include_object": lambda _, name, *__: name != "kinema_jobs_rank"}  # not reflected: an expression
        assert compare_metadata(MigrationContext.configure(connection, opts=others), METADATA) == []
        indexes = {index["name"]: index["column_names"] for index in sa.inspect(connection).get_indexes("kinema_jobs")}
        assert connection.execute(sa.select(IDENTITY.c.format, IDENTITY.c.oldest_reader)).one() == (
            FORMAT,
            OLDEST_READER,
        )
    expected = {index.name: [column.name for column in index.columns] for index in JOBS.indexes}
    del expected["kinema_jobs_rank"]
    assert {name: indexes[name] for name in expected} == expected


def test_database_without_batches_gets_their_tables(settings, engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE kinema_batches")
        connection.exec_driver_sql("ALTER TABLE kinema_jobs DROP COLUMN finishing_work")
        connection.execute(IDENTITY.update().values(format=4))
    with Queue(settings) as queue:
        file = queue.file_table.add(new_file_id(), "a.jsonl", "batch", 1)
        batch = queue.batches.add(file.id, owner="a", idempotency_key="k", fingerprint="f")
        assert queue.batches.by_key("a", "k", "f") == batch


@pytest.mark.parametrize("found", [1, FORMAT + 1])
def test_format_that_is_too_old_or_new_is_refused_and_not_changed(settings, engine, found):
    set_format(engine, found, oldest_reader=FORMAT + 1)
    with pytest.raises(InvalidRequest, match=rf"has format {found}, but this version .* uses format {FORMAT}\."):
        Queue(settings, "queue_work:Work")
    with engine.connect() as connection:
        assert connection.execute(sa.select(IDENTITY.c.format)).scalar() == found
        assert connection.execute(sa.select(sa.func.count()).select_from(JOBS)).scalar() == 2


def test_later_format_that_this_version_may_use_is_used(settings, engine):
    set_format(engine, FORMAT + 1, oldest_reader=FORMAT)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE kinema_jobs ADD COLUMN later TEXT NOT NULL DEFAULT ''")
    with Queue(settings, "queue_work:Work") as queue:
        assert wait_finished(queue, queue.submit(NewJob(request(seed=9), image=IMAGE))).status == "completed"


def test_running_server_reports_a_migration_that_it_does_not_understand(settings, engine):
    if engine.dialect.name == "sqlite":
        pytest.skip("one server at a time uses a file")
    with Queue(settings) as queue:
        queue.check_database()
        set_format(engine, FORMAT + 1, oldest_reader=FORMAT + 1)
        with pytest.raises(QueueUnavailable, match="upgrade this server"):
            queue.check_database()
