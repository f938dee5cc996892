"""Statistics as TensorBoard's plain scalars."""

import time
from collections.abc import Sequence

from dopamine.metrics import collector, collector_dispatcher, statistics_instance
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer import event_file_writer

__all__ = ["ScalarCollector"]


class ScalarCollector(collector.Collector):
    """In place of Dopamine's collector 'tensorboard', which writes tensors that not every reader takes for scalars.

    Args:
        base_dir: Folder of the run.
    """

    def __init__(self, base_dir: str) -> None:
        super().__init__(base_dir)
        self._writer = event_file_writer.EventFileWriter(self._base_dir)

    def get_name(self) -> str:
        """The name that gin's `CollectorDispatcher.collectors` has for it."""
        return "tensorboard"

    def write(self, statistics: Sequence[statistics_instance.StatisticsInstance]) -> None:
        """Adds statistics to the file of events."""
        for each in statistics:
            if self.check_type(each.type):
                value = summary_pb2.Summary.Value(tag=each.name, simple_value=float(each.value))
                summary = summary_pb2.Summary(value=[value])
                self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=int(each.step), summary=summary))

    def flush(self) -> None:
        """Writes what waits."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what waits, and closes the file."""
        self._writer.close()


collector_dispatcher.add_collector("tensorboard", ScalarCollector)
