"""What schemathesis does not know by itself about our API."""

import io
import tarfile

import schemathesis


@schemathesis.serializer("application/x-tar")
def archive(ctx, value):
    """Sends text as a file of an archive, and everything else as it is."""
    if isinstance(value, bytes):
        return value
    content = str(value).encode(errors="replace")
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as made:
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        made.addfile(entry, io.BytesIO(content))
    return held.getvalue()


@schemathesis.hook
def filter_query(ctx, query):
    """Leaves out the archive of a whole sandbox: /proc is in it, where even root cannot read all, and an
    archive that is not whole is told by its breaking off."""
    if ctx.operation.path.endswith("/files/tar") and ctx.operation.method == "get":
        return bool(str((query or {}).get("path", "x")).strip("/."))
    return True
