"""Streams that lie on several brokers."""

from bus.broker.topology import STREAMS


async def test_every_stream_lies_on_each_broker(clustered):
    for stream in STREAMS:
        info = await clustered.connection.js.stream_info(stream.name)
        assert info.config.num_replicas == 3
        print(info.cluster)
    ref = await clustered.objects.put(b"x" * 2_000_000)
    assert await clustered.objects.get(ref) == b"x" * 2_000_000
