"""The official client against `rftkit serve`: its script runs with another address."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from fastapi.testclient import TestClient

from rftkit import load_task, serve
from rftkit.files import UserError, write_json
from rftkit.records import Sample
from rftkit.rows import sha256_of, write_rows

TASK = load_task("gene_ranking")
SMALL = {"n_epochs": 2, "batch_size": 4, "compute_multiplier": 0.25, "eval_interval": 2}


@pytest.fixture
def rows(tmp_path):
    write_rows(tmp_path / "train.jsonl", TASK.rows("train")[:16])
    write_rows(tmp_path / "validation.jsonl", TASK.rows("validation")[:8])
    return tmp_path


class Server:
    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, "-m", "rftkit.cli", "serve", "--port", str(self.port)]
        self.command += ["--dir", str(folder), "--model", "embedded:mini"]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command)
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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server") / "state")
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
    before = [*client.fine_tuning.jobs.list()]
    job = create(client, rows)
    assert job.status == "queued" and job.fine_tuned_model is None
    job = wait(client, job, "succeeded")
    events = client.fine_tuning.jobs.list_events(job.id, limit=3)
    assert [event.data["step"] for event in events.data[1:]] == [8, 7] and events.has_more
    assert len(list(client.fine_tuning.jobs.list_events(job.id, limit=3))) == 9
    best = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert best and best[0].fine_tuning_job_id == job.id
    for model in (job.fine_tuned_model, best[-1].fine_tuned_model_checkpoint):
        reply = client.chat.completions.create(
            model=model, messages=item["messages"], temperature=0
        )
        assert reply.choices[0].message.content.startswith('{"genes"') and reply.model == model
    assert [*client.fine_tuning.jobs.list()] == [job, *before]  # the newest first


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
    before = list(client.fine_tuning.jobs.list())
    with pytest.raises(openai.NotFoundError, match="no file '..%2Fjobs'"):
        client.files.retrieve("..%2Fjobs")
    with pytest.raises(openai.BadRequestError) as error:
        create(client, rows, n_epochs=51)
    assert "n_epochs" in error.value.body["message"]
    with pytest.raises(openai.BadRequestError, match="expected one of"):
        create(client, rows, grader={"type": "guess"})
    assert list(client.fine_tuning.jobs.list()) == before  # nothing half-made
    with pytest.raises(openai.NotFoundError, match="no tuned model 'gpt-4o'"):
        client.chat.completions.create(model="gpt-4o", messages=TASK.rows("train")[0]["messages"])
    with socket.create_connection(("127.0.0.1", server.port)) as upload:  # 2 GB, of which none came
        upload.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n")
        assert b" 413 " in upload.recv(1000).splitlines()[0]
    with socket.create_connection(("127.0.0.1", server.port)) as upload:  # a client that hangs up
        upload.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    with ThreadPoolExecutor(4) as pool:
        kept = [*pool.map(lambda _: client.files.list(), range(8))]
    assert len({len(listed.data) for listed in kept}) == 1


# The service itself, without a training: what each of its promises rests on.
PATIENT = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)"
PATIENT += "; print('ready', flush=True); time.sleep(60)"
REFUSED = "print('note'); print('error grader: broken'); raise SystemExit(1)"


@pytest.fixture
def service(tmp_path, monkeypatch):
    """It trains when a test says so. `service.children`: what its processes run, in turn."""
    real = subprocess.Popen

    def popen(command, **form):  # the job's id stays in the command line
        code = made.children.pop(0)
        return real([sys.executable, "-c", code, *command[3:]], **form)

    monkeypatch.setattr(serve.subprocess, "Popen", popen)
    work, serve.Service.work = serve.Service.work, lambda self: None
    made = serve.Service(tmp_path / "state", "embedded:mini")
    serve.Service.work, made.children = work, []
    yield made
    made.close()


@pytest.fixture
def http(service):
    app = serve.build_app(service)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def uploaded(http, rows, name):
    with open(rows / f"{name}.jsonl", "rb") as file:
        return http.post("/v1/files", files={"file": (f"../{name}.jsonl", file)}).json()


def requested(http, rows, **hyperparameters):
    inner = {"grader": TASK.grader.to_json(), "hyperparameters": SMALL | hyperparameters}
    request = {"model": "o4-mini", "method": {"type": "reinforcement", "reinforcement": inner}}
    request["training_file"] = uploaded(http, rows, "train")["id"]
    return request | {"validation_file": uploaded(http, rows, "validation")["id"]}


def running(service, name):
    thread = threading.Thread(target=service.train, args=(name,))
    thread.start()
    for _ in range(600):
        if "ready" in (service.place("jobs", name) / "output.txt").read_text().splitlines():
            return thread
        time.sleep(0.05)
    raise TimeoutError


def test_a_token_is_asked_for_where_one_is_set(http, monkeypatch):
    monkeypatch.setenv("RFTKIT_TOKEN", "secret")
    for key, status in (("guess", 401), ("", 401), ("secret", 200)):
        answer = http.get("/v1/files", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status
    assert http.get("/v1/files").status_code == 401


def test_a_grader_over_the_api_is_json_and_no_file_that_would_run(http, rows):
    (rows / "own.py").write_text(f"open({str(rows / 'ran')!r}, 'w')\ndef grade(sample, item): 1\n")
    request, own = requested(http, rows), f"{rows / 'own.py'}:grade"
    request["method"]["reinforcement"]["grader"] = own
    for path, body in (("alpha/graders/run", {"grader": own, "item": {}}), ("jobs", request)):
        answer = http.post(f"/v1/fine_tuning/{path}", json=body)
        assert answer.status_code == 400 and "grader: " in answer.json()["error"]["message"]
    assert not (rows / "ran").exists()


def test_another_host_that_leads_here_is_refused(http):
    for host, status in (("evil.example", 400), ("localhost:8000", 200), ("127.0.0.1", 200)):
        assert http.get("/v1/files", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "field, value",
    [
        *(("messages", None), ("messages", []), ("temperature", "hot"), ("max_tokens", -5)),
        *(("seed", "x"), ("n", -2), ("n", 0), ("tools", []), ("stream", True), ("model", ["ft"])),
    ],
)
def test_a_value_that_chat_cannot_honour_is_refused_by_name(http, field, value):
    request = {"model": "ft:m", "messages": [{"role": "user", "content": "?"}], field: value}
    answer = http.post("/v1/chat/completions", json=request)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["message"].startswith(f"{field}: ")


def test_every_error_has_the_apis_shape_and_no_path_of_the_server(http, monkeypatch):
    monkeypatch.setattr(serve, "page", lambda *_: 1 / 0)
    run = "/v1/fine_tuning/alpha/graders/run"
    for how, path, body, status in (
        ("GET", "/v1/files", None, 500),
        ("GET", "/v1/nothing", None, 404),
        ("POST", run, {"grader": TASK.grader.to_json(), "model_sample": 5}, 400),
        ("POST", run, {"grader": TASK.grader.to_json(), "item": [1]}, 400),
    ):
        answer = http.request(how, path, json=body)
        assert answer.status_code == status and answer.json()["error"]["message"]
        assert "/work" not in answer.text and ".py" not in answer.text


def test_an_id_is_never_a_path_and_neither_is_an_uploads_name(service, http, rows):
    assert uploaded(http, rows, "train")["filename"] == "train.jsonl"
    for name in ("../jobs", "..", "."):
        with pytest.raises(serve.ApiError, match="no file"):
            service.place("files", name)


def test_a_refused_job_leaves_nothing_and_a_jobs_file_stays(service, http, rows):
    with pytest.raises(UserError, match="^n_epochs: 51: "):
        service.create(requested(http, rows, n_epochs=51))
    without = requested(http, rows)
    del without["training_file"]
    with pytest.raises(UserError, match="no such file in the job: ") as error:
        service.create(without)
    assert str(service.folder) not in str(error.value)
    assert [*(service.folder / "jobs").iterdir()] == []
    job = service.create(requested(http, rows))
    place = f"/v1/files/{job['training_file']}"
    assert http.delete(place).status_code == 409 and http.get(place).status_code == 200
    service.move(job["id"], "cancelled")
    assert http.delete(place).json()["deleted"] and http.get(place).status_code == 404


def test_jobs_run_one_after_the_other_the_oldest_first(service, http, rows, monkeypatch):
    names = [service.create(requested(http, rows))["id"] for _ in range(3)]
    for age, name in zip((20, 30, 10), names):
        service.update(name, created_at=int(time.time()) - age)
    done = []

    def train(name):
        service.stopping = bool(done[1:])
        done.append(service.update(name, status="succeeded")["id"])

    monkeypatch.setattr(service, "train", train)
    service.work()
    assert done == [names[1], names[0], names[2]]


def test_a_job_that_fails_says_why_and_one_that_is_interrupted_waits(service, http, rows):
    name = service.create(requested(http, rows))["id"]
    service.children += ["raise SystemExit(130)", REFUSED]
    service.train(name)
    assert service.job(name)["status"] == "queued"
    service.train(name)
    job = http.get(f"/v1/fine_tuning/jobs/{name}").json()
    error = {"code": "exit_1", "message": "error grader: broken", "param": None}
    assert job["status"] == "failed" and job["error"] == error
    event = http.get(f"/v1/fine_tuning/jobs/{name}/events").json()["data"][0]
    assert event["level"] == "error" and "grader: broken" in event["message"]


def test_a_job_that_the_gate_refuses_says_what_to_change(service, http, rows):
    name = service.create(requested(http, rows))["id"]
    found = {"name": "task impossible", "evidence": "none is right", "knob": "easier rows"}
    write_json(service.folder / "jobs" / name / "run" / "gate.json", {"findings": [found]})
    service.children.append("print('error see gate.json'); raise SystemExit(3)")
    service.train(name)
    message = service.job(name)["error"]["message"]
    assert message == "task impossible: none is right; change easier rows"


@pytest.mark.parametrize("to", ["paused", "cancelled"])
def test_a_job_that_is_stopped_stays_so_and_its_process_ends(service, http, rows, to):
    name = service.create(requested(http, rows))["id"]
    service.children.append(PATIENT)
    thread = running(service, name)
    assert service.move(name, to)["status"] == to
    thread.join(30)
    assert service.process(name) is None and service.job(name)["status"] == to


def test_a_service_that_closes_interrupts_its_job_and_keeps_it_open(service, http, rows):
    name = service.create(requested(http, rows))["id"]
    service.children.append(PATIENT)
    thread = running(service, name)
    service.close()
    thread.join(30)
    for _ in range(100):
        if service.process(name) is None:
            break
        time.sleep(0.1)
    assert service.process(name) is None and service.job(name)["status"] == "running"


def test_chat_samples_as_it_is_asked_from_the_model_that_is_named(service, http, rows, monkeypatch):
    name = service.create(requested(http, rows))["id"]
    run = service.folder / "jobs" / name / "run"
    for step in (5, 10):
        (run / "checkpoints" / "best" / f"step-{step:06d}").mkdir(parents=True)
    write_json(run / "plan.json", {"max_completion_tokens": 64})
    tuned = service.update(name, fine_tuned_model=f"ft:m:{name}")["fine_tuned_model"]
    asked = []

    class Fake:
        def sample(self, prompts, n, sampling):
            assert prompts == [[{"role": "user", "content": "ab"}]]
            asked.append((n, sampling))
            return [[Sample(output_text="x", prompt_tokens=3, completion_tokens=2)] * n]

    monkeypatch.setattr(serve, "tuned_policy", lambda place: asked.append(place) or Fake())
    best = http.get(f"/v1/fine_tuning/jobs/{name}/checkpoints").json()["data"]
    assert [entry["step_number"] for entry in best] == [10, 5]
    limits = {"max_completion_tokens": 7, "temperature": 0.25, "top_p": 0.5, "seed": 4, "n": 2}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = {"messages": [{"role": "user", "content": parts}]}
    last = best[1]["fine_tuned_model_checkpoint"]
    for model, more in ((tuned, limits), (last, {})):
        reply = http.post("/v1/chat/completions", json=request | {"model": model} | more).json()
    assert reply["usage"]["total_tokens"] == 5 and reply["model"] == last
    (first, (n, sampling), second, (one, default)) = asked
    assert (first, second) == (str(run), str(run / "checkpoints" / "best" / "step-000005"))
    assert (n, sampling.max_new_tokens, sampling.temperature) == (2, 7, 0.25)
    assert (sampling.top_p, sampling.seed) == (0.5, 4)
    assert (one, default.max_new_tokens, default.temperature) == (1, 64, 1.0)
    for wrong in (f"ft:m:{name}:ckpt-step-7", f"ft:other:{name}"):
        reply = http.post("/v1/chat/completions", json=request | {"model": wrong})
        assert reply.status_code == 404
