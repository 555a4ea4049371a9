"""An OCI image layout of a folder: one layer, the same bytes for the same content.

https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md; standard library only.
"""

import argparse
import datetime
import gzip
import hashlib
import io
import json
import os
import pathlib
import sys
import tarfile

# What a node pulls; a release over it is refused here.
COMPRESSED_MAX = 30 * 1000 * 1000
USER = 65532
# Folders that the gateway writes to, where nothing else is mounted there.
OWN = {"run/zeugma", "var/lib/zeugma"}


def layer(root, epoch):
    """An uncompressed tar of `root`: sorted, owned by root, of one moment."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            entry = tarfile.TarInfo(name)
            entry.mtime = epoch
            if name in OWN:
                entry.uid = entry.gid = USER
            if path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o700 if name in OWN else 0o755
                tar.addfile(entry)
            else:
                entry.size = path.stat().st_size
                entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
                with path.open("rb") as content:
                    tar.addfile(entry, content)
    return out.getvalue()


class Layout:
    def __init__(self, folder):
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def add(self, media_type, content):
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def add_json(self, media_type, document):
        return self.add(media_type, as_json(document))


def as_json(document):
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--version", required=True)
    parser.add_argument("--revision", required=True)
    args = parser.parse_args()
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    created = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    created = created.strftime("%Y-%m-%dT%H:%M:%SZ")

    tar = layer(args.output / "root", epoch)
    packed = gzip.compress(tar, compresslevel=9, mtime=0)
    layout = Layout(args.output / "oci")
    labels = {
        "org.opencontainers.image.title": "zeugma",
        "org.opencontainers.image.description": "An east-west gateway for service meshes",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": args.version,
        "org.opencontainers.image.revision": args.revision,
        "org.opencontainers.image.created": created,
    }
    config = {
        "created": created,
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "Entrypoint": ["/usr/bin/zeugma"],
            "Cmd": ["--help"],
            "Env": ["PATH=/usr/bin"],
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "ExposedPorts": {f"{port}/tcp": {} for port in (15001, 15020, 15021, 15443)},
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest()]},
        "history": [{"created": created, "created_by": "deploy/image/build.sh"}],
    }
    kind = "application/vnd.oci.image."
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind + "manifest.v1+json",
        "config": layout.add_json(kind + "config.v1+json", config),
        "layers": [layout.add(kind + "layer.v1.tar+gzip", packed)],
        "annotations": labels,
    }
    entry = layout.add_json(kind + "manifest.v1+json", manifest)
    entry["platform"] = {"architecture": "amd64", "os": "linux"}
    entry["annotations"] = {"org.opencontainers.image.ref.name": args.version}
    index = {"schemaVersion": 2, "mediaType": kind + "index.v1+json", "manifests": [entry]}
    (layout.folder / "index.json").write_bytes(as_json(index))
    (args.output / "zeugma.tar").write_bytes(layer(layout.folder, epoch))

    print(f"{args.output}/oci: {entry['digest']}")
    print(f"compressed {len(packed) / 1e6:.1f} MB, unpacked {len(tar) / 1e6:.1f} MB")
    if len(packed) > COMPRESSED_MAX:
        sys.exit(f"over {COMPRESSED_MAX / 1e6:.0f} MB compressed")


main()
