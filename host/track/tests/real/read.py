"""Reads what a tracker was given with that tracker's own client, and prints it as JSON: {tag: [[step, value], ...]}."""

import json
import sys


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    out = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["tensors"]:
        plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
        values = [[e.step, e.tensor_proto.string_val[0].decode()] for e in events.Tensors(tag)]
        out[f"{plugin}:{tag}"] = values
    return out


def mlflow(uri, project):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(project)
    runs = client.search_runs([experiment.experiment_id])
    out = []
    for run in runs:
        run = client.get_run(run.info.run_id)
        history = {k: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics}
        artifacts = sorted(a.path for a in client.list_artifacts(run.info.run_id))
        out.append(
            {"name": run.info.run_name, "status": run.info.status, "params": run.data.params, "tags": run.data.tags, "metrics": history,
             "artifacts": artifacts}
        )
    return out


def wandb(path):
    from wandb.proto import wandb_internal_pb2 as pb
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(path)
    out = {"history": [], "summary": {}, "stats": [], "exit": 0, "numbers": []}
    while (data := store.scan_data()) is not None:
        record = pb.Record()
        record.ParseFromString(data)
        out["numbers"].append(record.num)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            assert row["_step"] == record.history.step.num
            out["history"].append(row)
        elif kind == "summary":
            out["summary"].update({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update})
        elif kind == "run":
            run = record.run
            config = {i.key: json.loads(i.value_json) for i in run.config.update}
            out["run"] = {"id": run.run_id, "project": run.project, "name": run.display_name, "config": config}
        elif kind == "stats":
            at = record.stats.timestamp
            assert record.stats.stats_type == pb.StatsRecord.StatsType.SYSTEM
            out["stats"].append([at.seconds + at.nanos / 1e9, {i.key: json.loads(i.value_json) for i in record.stats.item}])
        elif kind == "exit":
            out["exit"] += 1
    return out


print(json.dumps({"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}[sys.argv[1]](*sys.argv[2:])))
