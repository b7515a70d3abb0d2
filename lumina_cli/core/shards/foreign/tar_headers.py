"""Headers of other people's tars: bounded before they are read.

Python's tarfile reads the long name or the pax records of a member as a whole, at any size that its header
states, and recurses once per header of a chain.
"""

import tarfile

LONGEST = 1 << 20  # bytes of a long name or of pax records
MOST = 8  # such headers before one member; GNU tar writes two
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


class BoundedTarInfo(tarfile.TarInfo):
    """A member of a tar whose extended headers are within the limits; pass it as `tarinfo` of tarfile.open.

    Reading a member raises ReadError if they are not.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        chain = getattr(archive, "extended_headers", 0) + 1 if self.type in _EXTENDED else 0
        archive.extended_headers = chain  # type: ignore[attr-defined]
        if chain and not 0 <= self.size <= LONGEST:
            raise tarfile.ReadError(
                f"a header of {self.size:,} bytes for a long name; at most {LONGEST:,} are read"
            )
        if chain > MOST:
            raise tarfile.ReadError(f"more than {MOST} headers for one member")
        return super()._proc_member(archive)  # type: ignore[misc]
