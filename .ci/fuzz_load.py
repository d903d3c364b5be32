"""`load`: files of all kinds that `save` writes, and how they are changed."""

import contextlib
import copy
import io
import json
import zipfile

import numpy as np
from fuzz_target import Target

# Names, paths and values that do harm if anything does.
HARMFUL = [
    *("sklearn.conftest:pytest", "sklearn.tests.test_base:MyEstimator", "os:system"),
    *("sktransfer:save", "sktransfer.saving._file:save", "sklearn.base:BaseEstimator"),
    *("sklearn.utils._testing:MinimalClassifier", "sklearn.setup:x", "this:s", ":"),
    *("hf//dev/shm", "hf/../x", "hf/a/b", "timm/resnet18", "timm/", "hf/", "tiny"),
    *("/dev/zero", "/dev/stdin", "/etc/passwd", "~", "\0", "a" * 10_000, "..", ""),
    *("nan", "inf", "1e999", "Optimizer", "__doc__", "lr_scheduler", "__class__"),
    *("<U1000000000", "O", "V8", "M8[s]", "U", "builtins", "os", "system", "eval"),
    *("__reduce__", "FunctionNode", "MethodNode", "PartialNode", "TypeNode", "loader"),
    *(-1, 0, 1, 2, 2**31, 2**63, 2**200, -(2**63), 1e308, None, True, False),
    *([], {}, [None], {"a": 1}, {"same": 0}, {"same": -1}, {"dict": []}),
]


class LoadTarget(Target):
    documented = (ValueError, OSError)

    def prepare(self) -> None:
        import atheris
        import torch
        from sklearn.utils import all_estimators

        with atheris.instrument_imports(include=["sktransfer", "skops"]):
            import skops.io

            from sktransfer import load, register_backbone
            from sktransfer.saving import _file
        from tests.small_network import backbone_of_blocks, small_backbone

        torch.set_num_threads(1)
        # All that scikit-learn has is imported now, and so is what that imports.
        all_estimators()
        self.load, self.digest = load, _file._digest
        assert skops.io
        register_backbone("small-fuzz", small_backbone)
        register_backbone("blocks-fuzz", backbone_of_blocks)
        self.path = self.scratch / "model.sktransfer"
        for name in ("resnet18", "hf/a/b", "timm/resnet10t"):
            self.first_use(name)
        self.seeds = self.saved()
        for seed in self.seeds:
            self.path.write_bytes(seed)
            load(self.path)
        # Each part of a document, and of what is in it, may stand elsewhere.
        self.parts = list(HARMFUL)
        for seed in self.seeds:
            _, document, arrays = taken_apart(seed)
            self.parts += [value for *_, value in places(document)]
            for array in arrays.values():
                if is_zip(array):
                    self.parts += [value for *_, value in places(schema_of(array))]

    def first_use(self, name: str) -> None:
        """Import what is imported when a network of some library is first loaded."""
        from sktransfer import load_backbone

        with contextlib.suppress(ValueError, OSError):
            load_backbone(name, weights=None)

    def prepared(self, data: bytes):
        self.path.write_bytes(data)
        return lambda: self.load(self.path)

    def saved(self) -> list[bytes]:
        from sktransfer import save

        rng, found = np.random.default_rng(0), []
        X = rng.random((12, 256))
        y = np.array(["dark", "pale"])[(X.mean(axis=1) > 0.5).astype(int)]
        for estimator, target in estimators(y, rng):
            if target is not None:
                estimator.fit(X, target)
            save(estimator, self.path)
            found.append(self.path.read_bytes())
        return found

    def changed(self, data: bytes, most: int, rng) -> bytes:
        import atheris
        from safetensors.numpy import save

        if rng.random() < 0.1:
            return atheris.Mutate(data, most)
        metadata, document, arrays = taken_apart(data)
        if rng.random() < 0.1:
            _, document, arrays = taken_apart(rng.choice(self.seeds))
        for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
            if arrays and rng.random() < 0.35:
                self.change_array(arrays, rng)
            else:
                document = self.change(document, rng)
        text = json.dumps(document)
        if rng.random() < 0.05:
            metadata[rng.choice(list(metadata))] = str(rng.choice(self.parts))[:500]
        else:
            metadata |= {"document": text, "sha256": self.digest(text, arrays)}
        return save(arrays, metadata)

    def change(self, document, rng):
        """Change one place of what JSON holds."""
        import atheris

        found = places(document)
        if not found:
            return rng.choice(self.parts)
        parent, key, value = rng.choice(found)
        how = rng.randrange(9)
        if how == 0:
            del parent[key]
        elif how == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(value))
        elif how == 2 and isinstance(parent, dict):
            parent[str(rng.choice(self.parts))[:200]] = parent.pop(key)
        elif how == 3 and isinstance(parent, dict):
            # The name of another tag or parameter.
            names = [other for owner, other, _ in found if isinstance(owner, dict)]
            parent[rng.choice(names)] = parent.pop(key)
        elif how == 4 and isinstance(value, str):
            changed = atheris.Mutate(value.encode(errors="replace")[:1000], 1200)
            parent[key] = changed.decode(errors="replace")
        elif how == 5 and isinstance(value, int | float):
            parent[key] = value + rng.choice([-1, 1, 7, -(10**6), 10**9])
        elif how == 6:
            other, name, _ = rng.choice(found)
            parent[key], other[name] = copy.deepcopy([other[name], value])
        elif how == 7 and rng.random() < 0.2:
            depth = rng.choice([3, 100, 900, 5000])
            for _ in range(depth):
                value = {"tuple": [value]} if rng.random() < 0.5 else [value]
            parent[key] = value if depth < 900 else "nested" * 10
        else:
            parent[key] = copy.deepcopy(rng.choice(self.parts))
        return document

    def change_array(self, arrays: dict, rng) -> None:
        import atheris

        name = rng.choice(list(arrays))
        array, how = arrays[name], rng.randrange(6)
        if is_zip(array) and rng.random() < 0.8:
            arrays[name] = self.changed_zip(array, rng)
        elif how == 0:
            del arrays[name]
        elif how == 1:
            arrays[name] = arrays[rng.choice(list(arrays))]
        elif how == 2:
            arrays[name] = array.reshape(-1)[: rng.randrange(array.size + 1)]
        elif how == 3:
            kind = rng.choice("bBhHiIqQfde?")
            arrays[name] = array.astype(kind, casting="unsafe")
        elif how == 4:
            extreme = rng.choice([0, 1, -1, 127])
            arrays[name] = np.full_like(array, extreme, dtype=array.dtype)
        else:
            content = atheris.Mutate(array.tobytes(), array.nbytes + 64)
            arrays[name] = np.frombuffer(content, np.uint8)

    def changed_zip(self, array: np.ndarray, rng) -> np.ndarray:
        """Change the schema or another member of what skops has written."""
        import atheris

        with zipfile.ZipFile(io.BytesIO(array.tobytes())) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(list(members))
        if rng.random() < 0.7 and "schema.json" in members:
            schema = json.loads(members["schema.json"])
            for _ in range(rng.choice([1, 1, 2, 4])):
                schema = self.change(schema, rng)
            members["schema.json"] = json.dumps(schema).encode()
        elif rng.random() < 0.1:
            # Compresses to a thousandth of itself.
            members[name] = bytes(2**22)
        else:
            members[name] = atheris.Mutate(members[name], len(members[name]) + 64)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return np.frombuffer(file.getvalue(), np.uint8)


def estimators(y, rng):
    """Yield estimators of many kinds, and their targets, None for one not fitted."""
    import torch
    from scipy import stats
    from sklearn.base import clone
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.ensemble import VotingClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from sktransfer import (
        BackboneSelector,
        EmbeddingCache,
        FineTuneClassifier,
        FineTuneRegressor,
        PretrainedFeatureExtractor,
    )

    quick = {"max_epochs": 1, "random_state": 0}
    numbers = np.arange(len(y)) / len(y)
    labels = rng.integers(0, 2, (len(y), 3))
    net, blocks = "small-fuzz", "blocks-fuzz"
    hidden = {"hidden_layer_sizes": (5,), "dropout": 0.2}
    embedder = PretrainedFeatureExtractor(net)
    yield FineTuneClassifier(net, **quick, freeze="all", **hidden), y
    yield FineTuneClassifier(net, **quick, freeze=2, l2_sp=0.1), y
    yield FineTuneClassifier(blocks, **quick, freeze="b.1"), y
    yield FineTuneClassifier(net, **quick, optimizer=torch.optim.RMSprop), y
    yield FineTuneClassifier(net, **quick, freeze="all"), labels
    yield FineTuneRegressor(net, **quick), numbers
    yield FineTuneRegressor("tiny", freeze="all", random_state=0), numbers
    yield FineTuneClassifier("tiny", cache=EmbeddingCache("/dev/shm/fuzz-none")), None
    state = np.random.RandomState(3)
    yield PretrainedFeatureExtractor(net, stage=2, pooling="avgmax"), y
    yield PretrainedFeatureExtractor("tiny", weights=None, random_state=state), None
    yield BackboneSelector([net, blocks], scoring="knn"), y
    yield make_pipeline(embedder, StandardScaler(), LogisticRegression()), y
    yield make_pipeline(embedder, KNeighborsClassifier(algorithm="brute")), y
    columns = [("image", embedder, slice(0, 256)), ("number", "passthrough", [3])]
    yield make_pipeline(ColumnTransformer(columns), PCA(2), GaussianNB()), y
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1]}, cv=2)
    yield make_pipeline(embedder, search), numbers
    solved = FineTuneClassifier(net, freeze="all")
    yield CalibratedClassifierCV(solved, cv=2), y
    yield VotingClassifier([("a", solved), ("b", clone(solved))], voting="soft"), y
    choices = {"weight_decay": stats.loguniform(1e-3, 1), "dropout": [0, 0.1]}
    yield RandomizedSearchCV(solved, choices, n_iter=2, cv=2, scoring="f1_macro"), y


def taken_apart(data: bytes) -> tuple[dict, dict, dict]:
    """Return the metadata, document and arrays of a saved estimator."""
    from safetensors.numpy import load

    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata, json.loads(metadata["document"]), load(data)


def places(document) -> list[tuple]:
    """Return the parent, the key and the value of each place of what JSON holds."""
    found, left = [], [document]
    while left:
        parent = left.pop()
        if isinstance(parent, dict | list):
            items = parent.items() if isinstance(parent, dict) else enumerate(parent)
            found += [(parent, key, value) for key, value in items]
            left += [value for *_, value in found[len(found) - len(parent) :]]
    return found


def is_zip(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array[:2].tobytes() == b"PK"


def schema_of(array: np.ndarray):
    with zipfile.ZipFile(io.BytesIO(array.tobytes())) as archive:
        return json.loads(archive.read("schema.json"))
