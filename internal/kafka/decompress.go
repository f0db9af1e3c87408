package kafka

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

// MaxBatchDecompressedBytes bounds what a compressed batch may decompress to. It is part of
// the log's contract and no setting: readers with different bounds would disagree on what
// the log holds. The largest batch that ingest writes is a quarter of it.
const MaxBatchDecompressedBytes = 64 << 20

// decompressor decompresses batches, and has one answer for those that cannot be: too large
// or damaged behind a checksum that is right. Reading them again can only fail again, so a
// client stops there (*kgo.ErrDecompressTooLarge) and whoever reads goes on behind them.
type decompressor struct{ bounded kgo.Decompressor }

// newDecompressor has a client make the bounded decompressor, the only way to one.
func newDecompressor() (decompressor, error) {
	cl, err := kgo.NewClient(kgo.MaxDecompressBatchBytes(MaxBatchDecompressedBytes))
	if err != nil {
		return decompressor{}, fmt.Errorf("decompressor: %w", err)
	}
	defer cl.Close()
	bounded, ok := cl.OptValue(kgo.WithDecompressor).(kgo.Decompressor)
	if !ok {
		return decompressor{}, fmt.Errorf("decompressor: the client has none")
	}
	return decompressor{bounded}, nil
}

// Decompress is part of kgo.Decompressor.
func (d decompressor) Decompress(src []byte, codec kgo.CompressionCodecType) ([]byte, error) {
	out, err := d.bounded.Decompress(src, codec)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kgo.ErrMaxDecompress, err)
	}
	return out, nil
}
