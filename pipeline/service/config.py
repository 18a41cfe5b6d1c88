"""What `scan-pipeline serve` and `scan-pipeline app` do."""

from dataclasses import dataclass

from pipeline.fields import CommandConfig, option, run_option

LOCAL = ("127.0.0.1", "localhost", "::1")
KEY = "SCAN_PIPELINE_KEY"  # environment: an option would show in the list of processes


@dataclass(frozen=True)
class ServeConfig(CommandConfig):
    """What to search, and whom to answer."""

    run: str = run_option()
    features: tuple[str, ...] = option(
        (), "Store to search.", metavar="DIR", unset="every store under features/ that fits"
    )
    node: tuple[str, ...] = option(
        (), "Address of another server, such as http://10.0.0.5:7860: its answers are merged, nothing is searched here.",
        metavar="URL",
    )  # fmt: skip
    weights: str = option("", "Detector for photos that are sent.", metavar="FILE|NAME")
    host: str = option("127.0.0.1", f"Address to listen on; 0.0.0.0 lets other machines in, with the key in ${KEY}.")
    port: int = option(7860, "Port to listen on; 0: any free one.", min=0, max=65535)
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")
    threads: int = option(0, "Threads that compute.", min=0, max=1000, unset="half of the cores")
    timeout: float = option(30.0, "Seconds that a request may take.", above=0)
    queue: int = option(256, "Requests that may wait; others are refused.", min=1)
    watch: float = option(5.0, "Seconds between looks for new photos; 0: look at SIGHUP only.", min=0)

    @property
    def local(self) -> bool:
        """Whether only this machine can ask."""
        return self.host in LOCAL
