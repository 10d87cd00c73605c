"""The official client against `rftkit serve`: its script runs with another address."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from rftkit import load_task
from rftkit.rows import sha256_of, write_rows

TASK = load_task("gene_ranking")
SMALL = {"n_epochs": 2, "batch_size": 4, "compute_multiplier": 0.25, "eval_interval": 2}


@pytest.fixture
def rows(tmp_path):
    write_rows(tmp_path / "train.jsonl", TASK.rows("train")[:16])
    write_rows(tmp_path / "validation.jsonl", TASK.rows("validation")[:8])
    return tmp_path


class Server:
    def __init__(self, folder, **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, "-m", "rftkit.cli", "serve", "--port", str(self.port)]
        self.command += ["--dir", str(folder), "--model", "embedded:mini"]
        self.environment = os.environ | environment
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, env=self.environment)
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="secret", max_retries=0
        )
        for _ in range(600):
            try:
                return self.client.files.list()
            except openai.APIConnectionError:
                time.sleep(0.1)
        raise TimeoutError("the server does not answer")

    def stop(self, how=signal.SIGINT):
        self.process.send_signal(how)
        self.process.wait(60)


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "state")
    yield made
    made.stop()


def create(client, rows, grader=None, **hyperparameters):
    files = {}
    for field, name in (("training_file", "train"), ("validation_file", "validation")):
        with open(rows / f"{name}.jsonl", "rb") as file:
            files[field] = client.files.create(file=file, purpose="fine-tune").id
    inner = {"grader": grader or TASK.grader.to_json(), "hyperparameters": SMALL | hyperparameters}
    method = {"type": "reinforcement", "reinforcement": inner}
    return client.fine_tuning.jobs.create(
        model="o4-mini-2025-04-16", method=method, seed=3, **files
    )


def wait(client, job, *until, seconds=300):
    for _ in range(seconds * 10):
        job = client.fine_tuning.jobs.retrieve(job.id)
        if job.status in until:
            return job
        assert job.status not in ("failed", "cancelled"), job.error
        time.sleep(0.1)
    raise TimeoutError(job.status)


def test_the_clients_script_runs_from_upload_to_answer(server, rows):
    client, grader = server.client, TASK.grader.to_json()
    assert client.fine_tuning.alpha.graders.validate(grader=grader).grader.type == "multi"
    item = TASK.rows("train")[0]
    answer = f'{{"genes": ["{item["reference_gene"]}"]}}'
    graded = client.fine_tuning.alpha.graders.run(grader=grader, item=item, model_sample=answer)
    assert graded.reward == TASK.grader.run(item, answer)["reward"] > 0.5
    job = create(client, rows)
    assert job.status == "queued" and job.fine_tuned_model is None
    job = wait(client, job, "succeeded")
    events = client.fine_tuning.jobs.list_events(job.id, limit=3)
    assert [event.data["step"] for event in events.data[1:]] == [8, 7] and events.has_more
    assert len(list(client.fine_tuning.jobs.list_events(job.id, limit=3))) == 9
    best = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert best and best[0].fine_tuning_job_id == job.id
    reply = client.chat.completions.create(
        model=job.fine_tuned_model, messages=item["messages"], temperature=0
    )
    assert reply.choices[0].message.content.startswith('{"genes"')
    assert [j.id for j in client.fine_tuning.jobs.list()] == [job.id]


@pytest.mark.prove
def test_a_job_whose_server_is_killed_ends_with_the_same_weights(tmp_path, rows):
    adapters = []
    for name in ("whole", "killed"):
        server = Server(tmp_path / name)
        job = create(server.client, rows, n_epochs=4)
        if name == "killed":
            place = tmp_path / name / "jobs" / job.id
            for _ in range(1200):
                log = place / "run" / "log.jsonl"
                if log.exists() and len(log.read_text().splitlines()) >= 6:
                    break
                time.sleep(0.05)
            os.kill(int((place / "pid").read_text()), signal.SIGKILL)
            server.stop(signal.SIGKILL)
            server.start()
        wait(server.client, job, "succeeded")
        server.stop()
        run = tmp_path / name / "jobs" / job.id / "run"
        adapters.append(sha256_of(run / "adapter" / "adapter_model.safetensors"))
    assert adapters[0] == adapters[1]


def test_a_job_is_paused_resumed_and_cancelled_once(server, rows):
    jobs = server.client.fine_tuning.jobs
    first, second = create(server.client, rows, n_epochs=50), create(server.client, rows)
    wait(server.client, first, "running")
    assert jobs.pause(first.id).status == "paused"
    wait(server.client, second, "running", "succeeded")  # its turn
    assert jobs.resume(first.id).status == "queued"
    assert jobs.cancel(first.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="is cancelled, expected"):
        jobs.cancel(first.id)
    wait(server.client, second, "succeeded")


def test_bad_input_is_an_error_of_the_apis_shape(server, rows, tmp_path):
    client = server.client
    with pytest.raises(openai.NotFoundError, match="no file '..%2Fjobs'"):
        client.files.retrieve("..%2Fjobs")
    with pytest.raises(openai.BadRequestError) as error:
        create(client, rows, n_epochs=51)
    assert "n_epochs" in error.value.body["message"]
    with pytest.raises(openai.BadRequestError, match="expected one of"):
        create(client, rows, grader={"type": "guess"})
    assert not list(client.fine_tuning.jobs.list())  # nothing half-made
    with pytest.raises(openai.NotFoundError, match="no tuned model 'gpt-4o'"):
        client.chat.completions.create(model="gpt-4o", messages=[])
    with socket.create_connection(("127.0.0.1", server.port)) as upload:  # 2 GB, of which none came
        upload.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n")
        assert b" 413 " in upload.recv(1000).splitlines()[0]
    with socket.create_connection(("127.0.0.1", server.port)) as upload:  # a client that hangs up
        upload.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    with ThreadPoolExecutor(4) as pool:
        kept = [*pool.map(lambda _: client.files.list(), range(8))]
    assert len({len(listed.data) for listed in kept}) == 1


def test_a_token_is_asked_for_where_one_is_set(tmp_path):
    server = Server(tmp_path, RFTKIT_TOKEN="secret")
    other = openai.OpenAI(base_url=server.client.base_url, api_key="guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        other.files.list()
    server.stop()
